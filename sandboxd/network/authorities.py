"""Whom the node believes when a server says who it is: the host's own authorities, and those that the operator adds."""

import ssl
from pathlib import Path
from typing import Final

from netpolicy.verified import verifying
from sandboxd.network.base import NetworkError

_BUNDLES: Final = (
    Path("/etc/ssl/certs/ca-certificates.crt"),
    Path("/etc/pki/tls/certs/ca-bundle.crt"),
    Path("/etc/ssl/ca-bundle.pem"),
    Path("/etc/ssl/cert.pem"),
)
_MOST_BYTES: Final = 768 * 1024
"""A message to the proxy holds them all."""


def authorities(added: Path | None) -> str:
    """Return certificates in PEM; of a host without any, only what was added. NetworkError: the file is of no use."""
    found = next((path.read_text("ascii", "ignore") for path in _BUNDLES if path.is_file()), "")
    text = found if added is None else f"{found}\n{_text(added)}"
    if len(text) > _MOST_BYTES:
        raise NetworkError(f"authorities of more than {_MOST_BYTES} bytes")
    try:
        verifying(text)
    except (ssl.SSLError, ValueError) as error:
        raise NetworkError(f"authorities cannot be read: {error}") from error
    return text


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii")
    except (OSError, UnicodeError) as error:
        raise NetworkError(f"authorities cannot be read from {path}: {error}") from error
