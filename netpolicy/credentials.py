"""What the node's proxy needs to put secrets into requests: the project's CA and the values. Pure.

It lives in memory only: in no ledger, no log, no argument list. No repr and no error shows what is in it.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

MAX_VALUE_BYTES: Final = 64 * 1024
MAX_VALUES: Final = 32
"""As many as a policy can have `inject` entries."""
_MAX_PEM: Final = 16 * 1024
_KEYS: Final = frozenset({"ca_certificate", "ca_key", "values"})


class CredentialsRefusedError(ValueError):
    """What arrived is not credentials; the message never quotes it."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """One sandbox's, valid together with the policy that they came beside."""

    ca_certificate: str = field(repr=False)
    """PEM."""
    ca_key: str = field(repr=False)
    """PEM, not encrypted."""
    values: Mapping[str, str] = field(repr=False)
    """Of each secret that the policy names."""

    def to_json(self) -> dict[str, Any]:
        """Return the wire form; values travel in base64, so that no escaping changes them."""
        values = {name: base64.b64encode(value.encode()).decode() for name, value in self.values.items()}
        return {"ca_certificate": self.ca_certificate, "ca_key": self.ca_key, "values": values}

    @classmethod
    def from_json(cls, value: Any) -> "Credentials":
        """Raise CredentialsRefusedError for anything that `to_json` does not make."""
        given = _object(value)
        if frozenset(given) != _KEYS:
            raise CredentialsRefusedError("credentials are a certificate, a key and values")
        return cls(
            ca_certificate=_pem(given["ca_certificate"]),
            ca_key=_pem(given["ca_key"]),
            values=_values(given["values"]),
        )


def _object(value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise CredentialsRefusedError("not an object")
    return cast("dict[Any, Any]", value)


def _pem(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MAX_PEM or not value.startswith("-----BEGIN "):
        raise CredentialsRefusedError("the certificate and the key are PEM")
    return value


def _values(value: Any) -> dict[str, str]:
    given = _object(value)
    if len(given) > MAX_VALUES:
        raise CredentialsRefusedError(f"at most {MAX_VALUES} values by name")
    return {_name(name): _value(encoded) for name, encoded in given.items()}


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise CredentialsRefusedError("a value's name is text")
    return value


def _value(encoded: Any) -> str:
    if not isinstance(encoded, str):
        raise CredentialsRefusedError("a value is base64")
    try:
        raw = base64.b64decode(encoded, validate=True)
        text = raw.decode()
    except (binascii.Error, ValueError):
        raise CredentialsRefusedError("a value is base64 of UTF-8 text") from None
    if len(raw) > MAX_VALUE_BYTES:
        raise CredentialsRefusedError(f"a value has at most {MAX_VALUE_BYTES} bytes")
    return text
