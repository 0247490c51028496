"""The committed OpenAPI documents and the command that writes them."""
