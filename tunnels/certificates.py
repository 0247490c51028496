"""A certificate and its key in two files, followed while they change: connections that are open do not notice."""

import asyncio
import ssl
from pathlib import Path

import structlog

_log = structlog.get_logger()
_LOOK_SECONDS = 2.0


class Certificate:
    """What a listener shows. Renewed files are read again; half-written ones are not."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Raise OSError or ssl.SSLError for files that cannot be used."""
        self._files = (certificate, key)
        self._seen = self._stamps()
        self.context = self._made()

    def _made(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(*self._files)
        return context

    def look(self) -> bool:
        """Take up files that have changed and are whole; tells whether that was so."""
        try:
            found = self._stamps()
            if found == self._seen:
                return False
            self._made()  # on a context of its own first: what cannot be used must not replace what can
            self.context.load_cert_chain(*self._files)
        except (OSError, ssl.SSLError) as error:
            _log.warning("certificate not usable yet", error=type(error).__name__)
            return False
        self._seen = found
        _log.info("certificate read again")
        return True

    async def follow(self) -> None:
        """Look again for ever."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            await asyncio.to_thread(self.look)

    def _stamps(self) -> list[tuple[int, int]]:
        return [(found.st_mtime_ns, found.st_ino) for found in (path.stat() for path in self._files)]
