"""Certificates for hosts into whose requests something is put: made when asked for, by the project's own authority.

They and their keys live in this process and nowhere else. Each is for one exact name, and for a few days.
"""

import contextlib
import hashlib
import ssl
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL

from netpolicy.credentials import Credentials
from netpolicy.verified import verifying

_PROTOCOL: Final = b"http/1.1"
_KEPT: Final = 1024
_BEFORE: Final = timedelta(days=1)
"""For sandboxes whose clock is behind."""
_AFTER: Final = timedelta(days=6)
_LEFT: Final = timedelta(days=3)
"""With less left, another is made."""
_MOST_COMMON_NAME: Final = 64
_WARM: Final = "warm.invalid"
_WARM_TURNS: Final = 3
_WARM_BYTES: Final = 1 << 16


class UnusableError(Exception):
    """An authority's certificate or key cannot be used; says nothing of either."""


@dataclass(frozen=True, slots=True)
class _Leaf:
    context: SSL.Context
    until: datetime


class Leaves:
    """Server sides of TLS by project and name. Making one takes a fraction of a millisecond."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[bytes, str], _Leaf] = OrderedDict()

    def context(self, credentials: Credentials, name: str) -> SSL.Context:
        """Return what speaks for a name to those who trust the authority. UnusableError."""
        authority = hashlib.sha256(f"{credentials.ca_certificate}\0{credentials.ca_key}".encode()).digest()
        now = datetime.now(UTC)
        known = self._known.get((authority, name))
        if known is None or known.until - now < _LEFT:
            known = self._known[authority, name] = _make(credentials, name, now)
        self._known.move_to_end((authority, name))
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return known.context


def new_authority(name: str) -> tuple[str, str]:
    """Return an authority's certificate and key, both in PEM, for ten years."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BEFORE)
        .not_valid_after(now + timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), _key_text(key)


def warm() -> None:
    """Load all that it takes to be a server and a client of TLS, while there still is a file system to load it from."""
    certificate, key = new_authority("warm")
    credentials = Credentials(ca_certificate=certificate, ca_key=key, values={})
    server = SSL.Connection(Leaves().context(credentials, _WARM), None)
    server.set_accept_state()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = verifying(certificate).wrap_bio(incoming, outgoing, server_hostname=_WARM)
    for _ in range(_WARM_TURNS):
        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
        if outgoing.pending:
            server.bio_write(outgoing.read())
        with contextlib.suppress(SSL.WantReadError):
            server.do_handshake()
        with contextlib.suppress(SSL.WantReadError):
            incoming.write(server.bio_read(_WARM_BYTES))
    if client.version() is None:
        raise UnusableError("TLS does not work here")


def _make(credentials: Credentials, name: str, now: datetime) -> _Leaf:
    try:
        authority = x509.load_pem_x509_certificate(credentials.ca_certificate.encode())
        authority_key = serialization.load_pem_private_key(credentials.ca_key.encode(), password=None)
        if not isinstance(authority_key, ec.EllipticCurvePrivateKey):
            raise UnusableError("the authority's key is not of an elliptic curve")
        key = ec.generate_private_key(ec.SECP256R1())
        until = min(now + _AFTER, authority.not_valid_after_utc)
        certificate = _signed(
            authority, authority_key, key, name, max(now - _BEFORE, authority.not_valid_before_utc), until
        )
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_TICKET)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_alpn_select_callback(_choose)
        context.use_certificate(certificate)
        context.use_privatekey(key)
    except (ValueError, TypeError, SSL.Error):
        raise UnusableError("the authority cannot be used") from None
    return _Leaf(context, until)


def _signed(
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    key: ec.EllipticCurvePrivateKey,
    name: str,
    since: datetime,
    until: datetime,
) -> x509.Certificate:
    common = [x509.NameAttribute(NameOID.COMMON_NAME, name)] if len(name) <= _MOST_COMMON_NAME else []
    issuer_key = authority_key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name(common))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(since)
        .not_valid_after(until)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=not common)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
        .sign(authority_key, hashes.SHA256())
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _key_text(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def _choose(_: Any, offered: Sequence[bytes]) -> Any:
    return _PROTOCOL if _PROTOCOL in offered else SSL.NO_OVERLAPPING_PROTOCOLS
