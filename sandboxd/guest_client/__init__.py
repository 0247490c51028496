"""The guest as the node sees it: interface, bounded HTTP client, in-memory fake."""
