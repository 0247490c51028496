"""What executes sandboxes: the protocol, the pure bundle, runsc and the shipped fake."""
