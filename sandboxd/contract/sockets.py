"""WebSockets of the public surface: subprotocols, close codes, and what the api tells a node about one."""

from enum import IntEnum
from typing import Final

PROCESS_PROTOCOL: Final = "sandlot.process.v1"
TCP_PROTOCOL: Final = "sandlot.tcp.v1"
BEARER_PREFIX: Final = "sandlot.bearer."
"""A browser cannot send headers with a WebSocket: it offers its credential as a subprotocol. It ends at the api."""
MAY_WRITE: Final = "Sandlot-May-Write"
"""Header from api to node: `true` when the caller may also send input. Absent, the caller may only watch."""
MAX_UNACKNOWLEDGED_BYTES: Final = 1_048_576
"""Standard input that a client may have under way."""


class CloseCode(IntEnum):
    """Why a WebSocket is closed."""

    DONE = 1000
    GOING_AWAY = 1001
    """The program at the other end stops; attach again at once."""
    TEXT = 1003
    TOO_BIG = 1009
    FAILED = 1011
    """The sandbox's guest failed, or the stream inside broke."""
    BAD_FRAME = 4400
    CREDENTIAL = 4401
    NOT_FOUND = 4404
    PAUSED = 4409
    ENDED = 4410
    NOT_LISTENING = 4502
    NODE_UNREACHABLE = 4503


_CODES: Final = {
    "unauthenticated": CloseCode.CREDENTIAL,
    "scope_required": CloseCode.CREDENTIAL,
    "sandbox_not_found": CloseCode.NOT_FOUND,
    "process_not_found": CloseCode.NOT_FOUND,
    "sandbox_paused": CloseCode.PAUSED,
    "sandbox_ended": CloseCode.ENDED,
    "port_not_listening": CloseCode.NOT_LISTENING,
    "node_unreachable": CloseCode.NODE_UNREACHABLE,
    "sandbox_lost": CloseCode.NODE_UNREACHABLE,
}


def close_code(problem_code: str) -> CloseCode:
    """Return the code with which a problem closes a WebSocket that is open."""
    return _CODES.get(problem_code, CloseCode.FAILED)
