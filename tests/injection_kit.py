"""Real servers for requests into which something is put: TLS by an authority of the test's own, and what they got."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from netpolicy.credentials import Credentials
from netpolicy.leaves import new_authority

SECRET = "s3cr3t-9f1c2b7d-value"
"""What must be seen at the real server, and nowhere else."""


@dataclass
class Authority:
    """Signs certificates of the world outside."""

    certificate: str
    key: str

    def issue(self, directory: Path, *names: str) -> ssl.SSLContext:
        """Return a server's side for these names."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        issuer = x509.load_pem_x509_certificate(self.certificate.encode())
        signer = serialization.load_pem_private_key(self.key.encode(), password=None)
        assert isinstance(signer, ec.EllipticCurvePrivateKey)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(issuer.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
            .sign(signer, hashes.SHA256())
        )
        path = directory / f"{names[0]}.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context


def authority(name: str) -> Authority:
    return Authority(*new_authority(name))


def credentials(project: Authority, **values: str) -> Credentials:
    return Credentials(ca_certificate=project.certificate, ca_key=project.key, values=values or {"token": SECRET})


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class RealServer:
    """Answers 200 to whatever has come with its head, and keeps every byte; `handler` does something else."""

    got: bytearray = field(default_factory=bytearray)
    heads: list[bytes] = field(default_factory=list[bytes])
    connections: int = 0
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    """A head has come."""
    handler: Handler | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await (self.handler or self._answer)(reader, writer)
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await self.head(reader)
            body = await self._body(head, reader)
            text = b"you said %d\n" % len(body)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX-Odd:  Kept \r\n\r\n%s" % (len(text), text))
            await writer.drain()
            if b"\r\nconnection: close\r\n" in head.lower():
                return

    async def head(self, reader: asyncio.StreamReader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        self.got += head
        self.heads.append(head)
        self.asked.set()
        return head

    async def _body(self, head: bytes, reader: asyncio.StreamReader) -> bytes:
        lower = head.lower()
        if b"chunked" in lower:
            body = bytearray()
            while True:
                size = await reader.readline()
                self.got += size
                body += await reader.readexactly(int(size, 16))
                self.got += await reader.readuntil(b"\r\n")
                if int(size, 16) == 0:
                    return bytes(body)
        length = next((line for line in lower.split(b"\r\n") if line.startswith(b"content-length:")), b":0")
        body = await reader.readexactly(int(length.split(b":")[1]))
        self.got += body
        return body


@contextlib.asynccontextmanager
async def real_server(address: str, context: ssl.SSLContext) -> AsyncGenerator[RealServer]:
    made = RealServer()
    async with await asyncio.start_server(made.serve, address, 443, ssl=context):
        yield made
