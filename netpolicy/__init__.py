"""Egress policy as a library: what a sandbox may reach, and the kernel table that holds it to that."""
