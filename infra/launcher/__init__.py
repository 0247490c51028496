"""One box: starts api and node, keeps them up, ends them."""
