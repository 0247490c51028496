"""A project's certificate authority: its sandboxes alone trust it, for the hosts into whose requests secrets go."""

import datetime as dt
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from api.services.platform import Platform
from api.services.vault import Vault
from api.store import secrets as store
from api.store.secret_tables import Authority

_YEARS: Final = dt.timedelta(days=3653)
_EARLY: Final = dt.timedelta(days=1)
"""Clocks in sandboxes may be behind."""


def _of(project_id: str) -> tuple[str, ...]:
    return ("authority", project_id)


async def authority_of(platform: Platform, project_id: str) -> tuple[str, str]:
    """Return certificate and key of a project's authority in PEM, made on first use. UnreadableError."""
    known = await platform.database.read(store.authority, project_id)
    if known is None:
        made = make(platform.vault, project_id, platform.sources.now_us())
        known = await platform.database.write(store.keep_authority, project_id, made)
    return known.certificate, open_key(platform.vault, known)


def open_key(vault: Vault, known: Authority) -> str:
    """Return the key of an authority. UnreadableError."""
    return vault.open(known.sealed_key, _of(known.project_id)).decode()


def seal_key(vault: Vault, known: Authority) -> bytes:
    """Return its key under the newest seal. UnreadableError."""
    return vault.seal(open_key(vault, known).encode(), _of(known.project_id))


def make(vault: Vault, project_id: str, now_us: int) -> Authority:
    """Make an authority. Its names are not constrained: which hosts it vouches for is the policies' to say."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Sandlot injection CA {project_id}")])
    now = dt.datetime.fromtimestamp(now_us // 1_000_000, dt.UTC)
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLY)
        .not_valid_after(now + _YEARS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Authority(
        project_id=project_id,
        certificate=certificate.public_bytes(Encoding.PEM).decode(),
        sealed_key=vault.seal(pem, _of(project_id)),
        created_at=now_us,
    )
