"""The messages of one WebSocket, without I/O: bytes in, messages and answers out."""

import base64
import hashlib
import secrets
from collections.abc import Mapping
from typing import Final

from websockets.exceptions import ProtocolError as WebSocketError
from websockets.frames import Frame, Opcode
from websockets.protocol import CLIENT, OPEN, Protocol

from sandlot.errors import ProtocolError

LARGEST_MESSAGE: Final = 4 * 1024 * 1024
_MAGIC: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_NO_CLOSE_FRAME: Final = 1006


class Handshake:
    """What a request must say to become a WebSocket, and what its answer must say back."""

    def __init__(self, subprotocol: str) -> None:
        self._subprotocol = subprotocol
        self._key = base64.b64encode(secrets.token_bytes(16))

    def headers(self) -> dict[str, str]:
        return {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": self._key.decode(),
            "Sec-WebSocket-Protocol": self._subprotocol,
        }

    def check(self, headers: Mapping[str, str]) -> None:
        """Raise ProtocolError unless the answer belongs to this request."""
        expected = base64.b64encode(hashlib.sha1(self._key + _MAGIC).digest()).decode()  # noqa: S324 - RFC 6455 says so
        if headers.get("sec-websocket-accept") != expected:
            raise ProtocolError("the answer to a WebSocket handshake is not one")
        if headers.get("sec-websocket-protocol") != self._subprotocol:
            raise ProtocolError(f"the server does not speak {self._subprotocol}")


class Messages:
    """Both directions of an open WebSocket. Pings are answered; fragments are joined, up to 4 MiB."""

    def __init__(self) -> None:
        self._protocol = Protocol(CLIENT, state=OPEN, max_size=LARGEST_MESSAGE)
        self._parts: list[bytes] = []
        self._opcode = Opcode.BINARY
        self.is_over = False
        """The server has closed, or the connection has ended."""

    @property
    def is_open(self) -> bool:
        """Whether messages may still be sent."""
        return self._protocol.state is OPEN and not self.is_over

    @property
    def close_code(self) -> int:
        """Why it is over: the server's code, or 1006 for a connection that just ended."""
        close = self._protocol.close_rcvd
        return _NO_CLOSE_FRAME if close is None else int(close.code)

    @property
    def close_reason(self) -> str:
        close = self._protocol.close_rcvd
        return "" if close is None else close.reason

    def feed(self, data: bytes) -> list[bytes | str]:
        """Return the messages that `data` completes; empty `data` is the end of the connection."""
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
            self.is_over = True
        found: list[bytes | str] = []
        for event in self._protocol.events_received():
            if isinstance(event, Frame):
                found += self._take(event)
        if isinstance(self._protocol.parser_exc, WebSocketError):
            raise ProtocolError(f"not a WebSocket: {self._protocol.parser_exc}")
        return found

    def text(self, text: str) -> bytes:
        """Return the bytes that send a text message."""
        self._protocol.send_text(text.encode())
        return self.pending()

    def binary(self, data: bytes) -> bytes:
        """Return the bytes that send a binary message."""
        self._protocol.send_binary(data)
        return self.pending()

    def close(self, code: int) -> bytes:
        """Return the bytes that close it from here; none if that was done."""
        if not self._protocol.close_expected() and not self.is_over:
            self._protocol.send_close(code)
        return self.pending()

    def pending(self) -> bytes:
        """Return what is to be sent now, answers to pings among it."""
        return b"".join(self._protocol.data_to_send())

    def _take(self, frame: Frame) -> list[bytes | str]:
        if frame.opcode == Opcode.CLOSE:
            self.is_over = True
        if frame.opcode not in {Opcode.TEXT, Opcode.BINARY, Opcode.CONT}:
            return []
        if frame.opcode != Opcode.CONT:
            self._opcode = frame.opcode
        self._parts.append(bytes(frame.data))
        if not frame.fin:
            return []
        whole = b"".join(self._parts)
        self._parts.clear()
        return [whole.decode(errors="replace") if self._opcode == Opcode.TEXT else whole]
