"""All sandboxes of a node: admission, start-up, what is done for all of them together, and the way in for calls."""
