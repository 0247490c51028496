"""The node's HTTP server: its own calls for the api, and the calls of clients that the api passes on."""
