"""Where in a store what lies, and whose content it is."""

import re
from dataclasses import dataclass
from typing import Final

PUBLIC: Final = "public"
"""The domain of what everybody may know to be there."""

_DOMAIN: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_HEX: Final = re.compile(r"[0-9a-f]{64}")
_VERSION: Final = "v1"

INTENTS: Final = f"{_VERSION}/intents"
NODES: Final = f"{_VERSION}/nodes"
CONDEMNED: Final = f"{_VERSION}/condemned"
PACKS: Final = f"{_VERSION}/packs"
IMAGES: Final = f"{_VERSION}/images"


@dataclass(frozen=True, slots=True, order=True)
class PackName:
    """A pack: what it is called, and within which walls."""

    domain: str
    hex: str

    @property
    def key(self) -> str:
        return f"{PACKS}/{self.domain}/{self.hex}"


@dataclass(frozen=True, slots=True, order=True)
class ManifestName:
    """A manifest of an image; of one image there may be several, all as good."""

    domain: str
    image: str
    """The image's digest, without the name of the hash."""
    hex: str

    @property
    def key(self) -> str:
        return f"{IMAGES}/{self.image}/{self.domain}/{self.hex}"


def check_domain(domain: str) -> str:
    """Return a domain that can be one: `public`, or a project's id. ValueError."""
    if _DOMAIN.fullmatch(domain) is None:
        raise ValueError(f"{domain!r} is no domain of content")
    return domain


def packs_of(domain: str) -> str:
    return f"{PACKS}/{domain}"


def manifests_of(image: str) -> str:
    return f"{IMAGES}/{image}"


def parse_key(key: str) -> PackName | ManifestName | None:
    """Read the key of content; None for what is none of ours."""
    match key.split("/"):
        case [version, "packs", domain, name] if version == _VERSION and _HEX.fullmatch(name):
            return PackName(domain, name) if _DOMAIN.fullmatch(domain) else None
        case [version, "images", image, domain, name] if (
            version == _VERSION and _HEX.fullmatch(image) and _HEX.fullmatch(name)
        ):
            return ManifestName(domain, image, name) if _DOMAIN.fullmatch(domain) else None
        case _:
            return None


def tombstone_of(name: PackName | ManifestName) -> str:
    return f"{CONDEMNED}/{name.key.removeprefix(f'{_VERSION}/')}"


def parse_tombstone(key: str) -> PackName | ManifestName | None:
    return parse_key(f"{_VERSION}/{key.removeprefix(f'{CONDEMNED}/')}")
