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
CONTENT: Final = f"{_VERSION}/content"


@dataclass(frozen=True, slots=True, order=True)
class PackName:
    """A pack: what it is called, and within which walls."""

    domain: str
    hex: str

    @property
    def key(self) -> str:
        return f"{packs_of(self.domain)}/{self.hex}"


@dataclass(frozen=True, slots=True, order=True)
class ManifestName:
    """A manifest of an image; of one image there may be several, all as good."""

    domain: str
    image: str
    """The image's digest, without the name of the hash."""
    hex: str

    @property
    def key(self) -> str:
        return f"{images_of(self.domain)}/{self.image}/{self.hex}"


def check_domain(domain: str) -> str:
    """Return a domain that can be one: `public`, or a project's id. ValueError."""
    if _DOMAIN.fullmatch(domain) is None:
        raise ValueError(f"{domain!r} is no domain of content")
    return domain


def packs_of(domain: str) -> str:
    return f"{CONTENT}/{domain}/packs"


def images_of(domain: str) -> str:
    return f"{CONTENT}/{domain}/images"


def parse_key(key: str) -> PackName | ManifestName | None:
    """Read the key of content; None for what is none of ours."""
    match key.split("/"):
        case [_, "content", domain, "packs", name] if _HEX.fullmatch(name) and _DOMAIN.fullmatch(domain):
            return PackName(domain, name)
        case [_, "content", domain, "images", image, name] if (
            _HEX.fullmatch(image) and _HEX.fullmatch(name) and _DOMAIN.fullmatch(domain)
        ):
            return ManifestName(domain, image, name)
        case _:
            return None


def tombstone_of(name: PackName | ManifestName) -> str:
    return f"{CONDEMNED}/{name.key.removeprefix(f'{CONTENT}/')}"


def parse_tombstone(key: str) -> PackName | ManifestName | None:
    return parse_key(f"{CONTENT}/{key.removeprefix(f'{CONDEMNED}/')}")
