"""What passes between two connections of a WebSocket, unread, once node and client have agreed on one.

Of what the node says only the lengths of frames are followed, so that whatever goes away, the client is told so in a
frame of its own between two of the node's.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from sandboxd.contract.sockets import CloseCode

SWITCH: Final = "sandlot.switch"
"""Where a request's scope has its Switch, when it asks for a WebSocket."""
_FLUSH_SECONDS: Final = 15.0
"""For what is still on its way when one side has gone."""
_BOUNDARY_SECONDS: Final = 2.0
_CLOSE: Final = 0x88
_TWO_BYTES, _EIGHT_BYTES = 126, 127


class Side(Protocol):
    """What one end of a passage is told of its connection."""

    def received(self, data: bytes) -> None: ...

    def lost(self) -> None: ...

    def hold(self) -> None:
        """More is waiting to be written than should be."""
        ...

    def go_on(self) -> None: ...

    def leave(self) -> None:
        """Say good-bye: the program is about to stop."""
        ...


class Switch(Protocol):
    """A client's connection that can be taken out of HTTP."""

    def __call__(self, head: bytes, side: Side) -> asyncio.Transport:
        """Answer with a head, and give all that comes from then on to `side`. ConnectionError when that is too late."""
        ...


class Boundaries:
    """Follows the frames that a server sends, without looking into them. Pure."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._left = 0
        self.closed = False
        """A close frame has passed."""

    @property
    def between(self) -> bool:
        """Whether a frame may be put in here."""
        return not self._left and not self._head

    def follow(self, data: bytes, *, to_boundary: bool = False) -> int:
        """Take note of bytes that pass; how many, with `to_boundary` those up to the end of the frame under way."""
        at, end = 0, len(data)
        while at < end and not (to_boundary and self.between):
            if self._left:
                step = min(self._left, end - at)
                self._left -= step
                at += step
                continue
            self._head.append(data[at])
            at += 1
            self._read_head()
        return at

    def _read_head(self) -> None:
        head = self._head
        if len(head) < 2:
            return
        short = head[1] & 0x7F
        extra = {_TWO_BYTES: 2, _EIGHT_BYTES: 8}.get(short, 0)
        if len(head) < 2 + extra:
            return
        self._left = int.from_bytes(head[2:]) if extra else short
        self._left += 4 if head[1] & 0x80 else 0
        self.closed = self.closed or head[0] & 0x8F == _CLOSE
        head.clear()


def close_frame(code: CloseCode, reason: str) -> bytes:
    """Render a server's close frame."""
    payload = code.to_bytes(2) + reason.encode()
    return bytes((_CLOSE, len(payload))) + payload


class Passage:
    """Two connections and what passes between them. Holds no more than their buffers do."""

    def __init__(self, node: asyncio.Transport) -> None:
        self._node = node
        self._client: asyncio.Transport | None = None
        self._boundaries = Boundaries()
        self._parting: bytes | None = None
        self._open = {"client", "node"}
        self._timers: list[asyncio.TimerHandle] = []
        self.over = asyncio.Event()

    def join(self, client: asyncio.Transport) -> None:
        self._client = client

    def to_client(self, data: bytes) -> None:
        if self._client is None or self._client.is_closing():
            return
        if self._parting is None:
            self._boundaries.follow(data)
            self._client.write(data)
        else:
            self._client.write(data[: self._boundaries.follow(data, to_boundary=True)])
            self._part()

    def to_node(self, data: bytes) -> None:
        if not self._node.is_closing():
            self._node.write(data)

    def hold(self, end: str) -> None:
        """Stop reading from an end: the other one takes no more."""
        transport = self._client if end == "client" else self._node
        if transport is not None and not transport.is_closing():
            transport.pause_reading()

    def go_on(self, end: str) -> None:
        transport = self._client if end == "client" else self._node
        if transport is not None and not transport.is_closing():
            transport.resume_reading()

    def close(self, code: CloseCode, reason: str) -> None:
        """Close from here, as soon as no frame of the node is cut by it."""
        if self._parting is None:
            self._parting = close_frame(code, reason)
            self._after(_BOUNDARY_SECONDS, self._give_up)
            self._part()

    def _part(self) -> None:
        client = self._client
        if client is None or client.is_closing() or not self._boundaries.between:
            return
        if not self._boundaries.closed and self._parting is not None:
            client.write(self._parting)
        client.close()
        self._node.close()
        self._give_time()

    def lost(self, end: str) -> None:
        self._open.discard(end)
        if not self._open:
            for timer in self._timers:
                timer.cancel()
            self.over.set()
        elif end == "client":
            self._node.close()
            self._give_time()
        elif self._boundaries.between:
            self.close(CloseCode.NODE_UNREACHABLE, "the node is out of reach")
        else:
            self._give_up()

    def _give_time(self) -> None:
        self._after(_FLUSH_SECONDS, self._give_up)

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        self._timers.append(asyncio.get_running_loop().call_later(seconds, act))

    def _give_up(self) -> None:
        if self._client is not None:
            self._client.abort()
        self._node.abort()


@dataclass(frozen=True, slots=True)
class ClientSide:
    passage: Passage

    def received(self, data: bytes) -> None:
        self.passage.to_node(data)

    def lost(self) -> None:
        self.passage.lost("client")

    def hold(self) -> None:
        self.passage.hold("node")

    def go_on(self) -> None:
        self.passage.go_on("node")

    def leave(self) -> None:
        self.passage.close(CloseCode.GOING_AWAY, "the api is stopping")


@dataclass(frozen=True, slots=True)
class NodeSide:
    passage: Passage

    def received(self, data: bytes) -> None:
        self.passage.to_client(data)

    def lost(self) -> None:
        self.passage.lost("node")

    def hold(self) -> None:
        self.passage.hold("client")

    def go_on(self) -> None:
        self.passage.go_on("client")

    def leave(self) -> None:
        """Nobody tells it: the node says so itself."""
