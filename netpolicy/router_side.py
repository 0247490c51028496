"""What the table and the programs beside it in the router namespace agree on: ports, marks, the log. Pure."""

from enum import StrEnum
from typing import Final

SLOT_PREFIX: Final = "sbx"
"""Of the names of all slots' interfaces here; their index follows."""
RESOLVER_PORT: Final = 15053
"""UDP and TCP. Every question to port 53 of any address comes here where names decide."""
HTTP_PORT: Final = 15080
"""What was meant for port 80. Where it was meant to go is the socket's original destination (SO_ORIGINAL_DST)."""
TLS_PORT: Final = 15443
"""What was meant for port 443; the same."""

SLOT_MASK: Final = 0xFFFF0000
"""The half of a connection's mark that names its slot."""
NODE_MARK: Final = 0x8000
"""Set where the node began the connection, which no egress policy ends."""
TUNNEL_MARK: Final = 0x4000
"""Set where somebody outside began it through a tunnel, which no egress policy ends either."""
GENERATION_MASK: Final = 0x3FFF
"""Of a connection that the sandbox began: the policy that last allowed it."""

LOG_GROUP: Final = 153
"""The nflog group on which the kernel tells what it refused: the first bytes of the packet, after a prefix."""
LOG_BYTES: Final = 64
"""How much of a packet is told: IPv4 and TCP or UDP headers."""


class LogPrefix(StrEnum):
    """Which line refused. What the policy refused, `verdict` explains from the packet's headers."""

    POLICY = "policy"
    CONNECTIONS = "connections"
    RATE = "rate"


def slot_mark(index: int) -> int:
    """Return the mark of a slot's connections, never zero."""
    return (index + 1) << 16


def slot_of_mark(mark: int) -> int:
    """Return the index of the slot that a mark names; negative for none."""
    return (mark >> 16) - 1
