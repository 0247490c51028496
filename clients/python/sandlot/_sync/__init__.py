"""The blocking client. Derived from _async by unasync.py: change it there."""
