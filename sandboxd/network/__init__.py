"""Slots: the network of each sandbox, and the node's router namespace that holds their host-side ends."""
