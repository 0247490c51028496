"""Ways into a sandbox from outside. Holds nothing yet but its place in the layers."""
