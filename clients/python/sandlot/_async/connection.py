"""A TCP connection to a port inside a sandbox, over a WebSocket."""

import json
from contextlib import suppress
from typing import Any, Final

from sandlot._async.route import AsyncRoute
from sandlot._async.websocket import AsyncWebSocket
from sandlot.errors import ConnectionClosedError, PortNotListeningError, SandlotError, UnreachableError, from_close

SUBPROTOCOL: Final = "sandlot.tcp.v1"
_PIECE_BYTES: Final = 65_536
_QUIET_SECONDS: Final = 24 * 3600.0
"""A connection may say nothing for a long time; what ends it is the other side, or the network."""
_NOT_LISTENING: Final = 4502
_DONE: Final = frozenset({1000, 1001, 1005})


class AsyncConnection:
    """Bytes both ways. A break is an error: nobody knows what of the last bytes arrived, so it is not opened again."""

    def __init__(self, socket: AsyncWebSocket, port: int) -> None:
        self._socket = socket
        self._is_ended = False
        self.port = port

    @classmethod
    async def open(cls, route: AsyncRoute, port: int) -> "AsyncConnection":
        """Connect to `port` on the sandbox's loopback."""
        return cls(await route.socket("/dial", {"port": port}, SUBPROTOCOL), port)

    async def __aenter__(self) -> "AsyncConnection":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close both directions."""
        await self._socket.aclose()

    async def receive(self) -> bytes:
        """Return the next bytes; none at the end of what the other side sends.

        Raises PortNotListeningError when nothing listens there, UnreachableError when the connection broke.
        """
        while not self._is_ended:
            try:
                message = await self._socket.receive(silence_seconds=_QUIET_SECONDS)
            except ConnectionClosedError as error:
                self._is_ended = True
                if error.code in _DONE:
                    break
                raise _failure(error, self.port) from error
            if isinstance(message, bytes):
                if message:
                    return message
            elif _says_eof(message):
                self._is_ended = True
        return b""

    async def send(self, data: bytes) -> None:
        """Send all of `data`. UnreachableError when the connection is gone."""
        for start in range(0, len(data), _PIECE_BYTES):
            await self._socket.send(data[start : start + _PIECE_BYTES])

    async def send_eof(self) -> None:
        """Say that nothing more will be sent; receiving goes on."""
        with suppress(UnreachableError):
            await self._socket.send('{"eof":true}')


def _says_eof(message: str) -> bool:
    try:
        value: Any = json.loads(message)
    except ValueError:
        return False
    return value == {"eof": True}


def _failure(error: ConnectionClosedError, port: int) -> SandlotError:
    if error.code == _NOT_LISTENING:
        detail = f"nothing listens on port {port} inside"
        return PortNotListeningError(502, {"code": "port_not_listening", "detail": detail, "port": port})
    meaning = from_close(error)
    return UnreachableError(str(error)) if meaning is error else meaning
