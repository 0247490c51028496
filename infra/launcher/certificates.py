"""A development CA and the certificates it gives to api and gateway: for trying TLS out, never for strangers."""

import os
import pwd
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from infra.config import LauncherConfig
from infra.launcher import account

_CA_DAYS: Final = 3650
_DAYS: Final = 397
"""The longest that browsers believe."""


class Issued(NamedTuple):
    """The files of one program."""

    certificate: Path
    key: Path


class _Signer(NamedTuple):
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def issue(config: LauncherConfig, names: list[str]) -> dict[str, Issued]:
    """Write certificates for `names` in `<data>/tls`, by the CA that is there, or a new one; `ca.pem` is to be trusted.

    Written again, running programs take them up.
    """
    directory = config.data_dir / "tls"
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o755)
    signer = _ca(directory)
    wanted = [*names, "localhost", "*.localhost", "127.0.0.1", "::1"]
    issued: dict[str, Issued] = {}
    for program, user in (("api", config.api_user), ("gateway", config.gateway_user)):
        files = Issued(directory / f"{program}.pem", directory / f"{program}-key.pem")
        certificate, key = _leaf(signer, wanted)
        # The key first: programs take the two up together once both fit.
        _write(files.key, _pem_of_key(key), 0o600, account.ensure_account(user))
        _write(files.certificate, _pem(certificate) + _pem(signer.certificate), 0o644)
        issued[program] = files
    return issued


def _ca(directory: Path) -> _Signer:
    certificate_path, key_path = directory / "ca.pem", directory / "ca-key.pem"
    if certificate_path.exists() and key_path.exists():
        key = serialization.load_pem_private_key(key_path.read_bytes(), None)
        if isinstance(key, ec.EllipticCurvePrivateKey):
            return _Signer(x509.load_pem_x509_certificate(certificate_path.read_bytes()), key)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Sandlot development CA")])
    certificate = (
        _begun(name, name, key, _CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    _write(key_path, _pem_of_key(key), 0o600)
    _write(certificate_path, _pem(certificate), 0o644)
    return _Signer(certificate, key)


def _leaf(signer: _Signer, names: list[str]) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Sandlot")])
    certificate = (
        _begun(subject, signer.certificate.subject, key, _DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([_name(each) for each in dict.fromkeys(names)]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key()),
            critical=False,
        )
        .sign(signer.key, hashes.SHA256())
    )
    return certificate, key


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _pem_of_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, data: bytes, mode: int, owner: pwd.struct_passwd | None = None) -> None:
    """Write a file with its rights, whole or not at all."""
    aside = path.with_name(path.name + ".new")
    aside.unlink(missing_ok=True)
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)  # whatever the umask: a certificate is read by other users' programs
        if owner is not None:
            os.fchown(descriptor, owner.pw_uid, owner.pw_gid)
        file.write(data)
    aside.replace(path)
