"""The client for asyncio and trio. `_sync` is derived from this package by `unasync.py`."""
