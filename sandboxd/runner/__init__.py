"""One sandbox from its start to its end: a task of its own, split by phase.

`life` is what is known of it, `start`, `deadlines`, `stop` and `recover` are what happens to it, `runner` is the order.
"""
