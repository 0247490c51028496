"""Every SQL statement of the control plane.

Functions take the connection and then the project: what a caller may not see cannot be asked for by accident. Those
for the platform itself end in `_any_project`.
"""
