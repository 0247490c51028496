"""The image store of a node: which images it has, and the file each of them is."""
