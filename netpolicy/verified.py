"""Connections to servers that prove by TLS who they are."""

import asyncio
import ssl
from dataclasses import dataclass
from typing import Final

from netpolicy.rewrite import RefusedError

PROTOCOL: Final = "http/1.1"


@dataclass(slots=True)
class Server:
    """A connection to the real server, by TLS, whose certificate was verified."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def over(self) -> bool:
        return self.reader.at_eof() or self.writer.is_closing()

    def abort(self) -> None:
        self.writer.transport.abort()


def verifying(authorities: str) -> ssl.SSLContext:
    """Return what verifies servers by these authorities (PEM), and by nothing else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols([PROTOCOL])
    if authorities:
        context.load_verify_locations(cadata=authorities)
    return context


async def open_verified(address: str, port: int, name: str, context: ssl.SSLContext) -> Server:
    """Connect to a server that proves to be `name`. OSError, or RefusedError where it proves something else."""
    try:
        reader, writer = await asyncio.open_connection(address, port, ssl=context, server_hostname=name)
    except ssl.SSLCertVerificationError as error:
        text = f"the certificate of {name} is not trusted: {error.verify_message}"
        raise RefusedError(502, text, "certificate_refused") from None
    return Server(reader, writer)
