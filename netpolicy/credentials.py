"""What a node needs to put secrets into requests: the project's authority and the values. Pure; kept in memory only."""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Credentials:
    """One sandbox's. Its text says nothing of what is in it."""

    ca_certificate: str
    """Of the project's authority, in PEM: what the guest trusts."""
    ca_key: str
    """Its key, in PEM."""
    values: Mapping[str, str]
    """By secret's name."""

    def __repr__(self) -> str:
        return f"Credentials({len(self.values)} values)"

    def to_json(self) -> dict[str, Any]:
        return {
            "ca_certificate": self.ca_certificate,
            "ca_key": self.ca_key,
            "values": {name: base64.b64encode(value.encode()).decode() for name, value in self.values.items()},
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Credentials":
        """Read back what `to_json` made; ValueError, which repeats nothing of it."""
        try:
            values = {str(name): _text(value) for name, value in dict(document["values"]).items()}
            return cls(ca_certificate=str(document["ca_certificate"]), ca_key=str(document["ca_key"]), values=values)
        except (binascii.Error, ValueError, KeyError, TypeError):
            raise ValueError("these are no credentials") from None


def _text(value: str) -> str:
    return base64.b64decode(value, validate=True).decode()
