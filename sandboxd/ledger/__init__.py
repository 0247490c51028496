"""The node's own record of its sandboxes, written before the act, so that a restart knows what it may find."""
