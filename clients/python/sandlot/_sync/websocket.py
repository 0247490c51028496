# Derived from _async by unasync.py: change it there.
"""An open WebSocket over a connection of httpx, which brings proxies, certificates and both colours."""

from collections import deque
from typing import Any, Final

import httpcore
import httpx

from sandlot._clock import Lock, shield
from sandlot._messages import Messages
from sandlot._requests import SILENCE_SECONDS
from sandlot.errors import ConnectionClosedError, UnreachableError

_READ_BYTES: Final = 65_536
_GOODBYE_SECONDS: Final = 5.0


class WebSocket:
    """Messages both ways. One reader at a time; any number of writers."""

    def __init__(self, response: httpx.Response, messages: Messages) -> None:
        self._response = response
        self._stream: Any = response.extensions["network_stream"]
        self._messages = messages
        self._received: deque[bytes | str] = deque()
        self._lock = Lock()
        self._is_broken = False

    def receive(self, *, silence_seconds: float = SILENCE_SECONDS) -> bytes | str:
        """Return the next message.

        Raises ConnectionClosedError with the server's code when it closed, UnreachableError when the connection broke
        or was silent for so long.
        """
        while not self._received:
            if self._messages.is_over:
                raise ConnectionClosedError(self._messages.close_code, self._messages.close_reason)
            try:
                data = self._stream.read(_READ_BYTES, timeout=silence_seconds)
            except (httpcore.NetworkError, httpcore.TimeoutException) as error:
                raise self._broken(error) from error
            with self._lock:
                self._received += self._messages.feed(data)
                self._write(self._messages.pending())
        return self._received.popleft()

    def send(self, data: bytes | str) -> None:
        """Send one message. UnreachableError when the connection is broken."""
        with self._lock:
            if self._is_broken or not self._messages.is_open:
                raise UnreachableError("the connection is closed")
            self._write(self._messages.text(data) if isinstance(data, str) else self._messages.binary(data))

    def say_goodbye(self, code: int = 1000) -> None:
        """Ask the server to close; what it still sends is to be received."""
        with self._lock:
            self._write(self._messages.close(code))

    def close(self) -> None:
        """Close the connection, with a goodbye where that is possible."""
        with shield():
            try:
                if not self._is_broken:
                    self.say_goodbye()
            except UnreachableError:
                self._is_broken = True
            finally:
                self._response.close()

    def _write(self, data: bytes) -> None:
        if not data or (self._messages.is_over and self._is_broken):
            return
        whole = False
        try:
            self._stream.write(data, timeout=_GOODBYE_SECONDS if self._messages.is_over else SILENCE_SECONDS)
            whole = True
        except (httpcore.NetworkError, httpcore.TimeoutException) as error:
            if self._messages.is_over:
                return  # it said goodbye and went: ours is not missed
            raise self._broken(error) from error
        finally:
            # Half a message makes all that follows unreadable, also when a cancellation was what cut it.
            self._is_broken = self._is_broken or not whole

    def _broken(self, error: Exception) -> UnreachableError:
        self._is_broken = True
        return UnreachableError(f"the connection broke: {error or type(error).__name__}")
