"""The server's side of TLS on a connection that somebody else reads: bytes go in and come out in memory. Bounded."""

import asyncio
import contextlib
from typing import Final

from OpenSSL import SSL

_ENCRYPTED_BYTES: Final = 128 * 1024
"""What has come and was not asked for; the connection is read no further meanwhile."""
_CHUNK_BYTES: Final = 64 * 1024


class TlsEnd:
    """One connection from its first byte. One task reads and one writes; errors of the wire are ConnectionError."""

    def __init__(self, transport: asyncio.Transport, context: SSL.Context) -> None:
        self._transport = transport
        self._tls = SSL.Connection(context, None)
        self._tls.set_accept_state()
        self._encrypted = bytearray()
        self._arrived = asyncio.Event()
        self._ended = False
        self._room = asyncio.Event()
        self._room.set()

    def feed(self, data: bytes) -> None:
        """Take what the client has sent."""
        self._encrypted += data
        if len(self._encrypted) > _ENCRYPTED_BYTES:
            self._transport.pause_reading()
        self._arrived.set()

    def feed_end(self) -> None:
        """Take note that nothing more comes."""
        self._ended = True
        self._arrived.set()

    def pause(self) -> None:
        """Write no more for now."""
        self._room.clear()

    def resume(self) -> None:
        self._room.set()

    async def handshake(self) -> None:
        """Agree on keys. ConnectionError."""
        while True:
            try:
                self._tls.do_handshake()
            except SSL.WantReadError:
                self._send_encrypted()
                if not await self._more():
                    raise ConnectionError("ended in the handshake") from None
            except SSL.Error:
                self._send_encrypted()  # the alert that says why
                raise ConnectionError("no handshake") from None
            else:
                self._send_encrypted()
                return

    async def read(self) -> bytes:
        """Return some bytes; none at the end, however it came."""
        while True:
            try:
                return self._tls.recv(_CHUNK_BYTES)
            except SSL.WantReadError:
                self._send_encrypted()
                if not await self._more():
                    return b""
            except SSL.ZeroReturnError:
                return b""
            except SSL.Error:
                raise ConnectionError("broken TLS") from None

    async def write(self, data: bytes) -> None:
        """Send bytes. Waits while the client takes no more."""
        view = memoryview(data)
        while view:
            try:
                sent = self._tls.send(bytes(view[:_CHUNK_BYTES]))
            except SSL.Error:
                raise ConnectionError("broken TLS") from None
            view = view[sent:]
            self._send_encrypted()
            await self._room.wait()

    def finish(self) -> None:
        """Say that no more comes."""
        with contextlib.suppress(SSL.Error):
            self._tls.shutdown()
        self._send_encrypted()

    def close(self) -> None:
        """Say that no more comes, and end the connection once that is sent."""
        self.finish()
        self._transport.close()

    async def _more(self) -> bool:
        """Have TLS see what has come; wait if that is nothing. False: there is no more."""
        while not self._encrypted and not self._ended:
            self._arrived.clear()
            await self._arrived.wait()
        if not self._encrypted:
            return False
        taken = bytes(self._encrypted)
        self._encrypted.clear()
        if not self._transport.is_closing():
            self._transport.resume_reading()
        self._tls.bio_write(taken)
        return True

    def _send_encrypted(self) -> None:
        while not self._transport.is_closing():
            try:
                self._transport.write(self._tls.bio_read(_CHUNK_BYTES))
            except SSL.WantReadError:
                return
