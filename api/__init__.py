"""The control plane: decides who may do what, whether and where; its database is its only memory."""
