"""What a program of the router namespace is: its sockets and its work."""

import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Given:
    """What a program starts with: all it will ever have."""

    channel: socket.socket
    upstream: socket.socket
    listeners: list[socket.socket]


@dataclass(frozen=True, slots=True)
class ProgramCode:
    """A program: how it binds its sockets, as root inside the namespace, and what it does after that."""

    bind: Callable[[], list[socket.socket]]
    run: Callable[[Given], Awaitable[None]]
