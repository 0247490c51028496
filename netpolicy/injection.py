"""A connection into whose requests something is put: TLS ends here, and begins again towards the verified server."""

import asyncio
from typing import Final, Protocol

from netpolicy.exchange import Exchange, next_request, refuse
from netpolicy.rewrite import Fields, RefusedError
from netpolicy.tls_end import TlsEnd
from netpolicy.verified import Server

_HANDSHAKE_SECONDS: Final = 10.0


class Door(Protocol):
    """What a connection may do at this moment; asked anew for every request."""

    @property
    def host(self) -> str:
        """The one host that it is for."""
        ...

    def placed(self) -> Fields:
        """Return what is put into requests now. RefusedError."""
        ...

    async def reach(self) -> Server:
        """Connect to the host. RefusedError."""
        ...

    def told(self, refused: RefusedError) -> None:
        """Take note of a refusal."""
        ...


async def converse(end: TlsEnd, door: Door) -> None:
    """Carry one connection to its end. ConnectionError where it broke off, TimeoutError where nothing came."""
    server: Server | None = None
    try:
        async with asyncio.timeout(_HANDSHAKE_SECONDS):
            await end.handshake()
        kept: bytes | None = b""
        while kept is not None:
            request = await next_request(end, kept, door.host)
            if request is None:
                break
            put = door.placed()
            if server is None or server.over:
                server = await door.reach()
            kept = await Exchange(end, server, request, put).carry()
    except RefusedError as refused:
        door.told(refused)
        await refuse(end, refused)
    finally:
        if server is not None:
            server.abort()
    end.close()
