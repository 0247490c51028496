"""References to images in registries: `[host[:port]/]repository[:tag][@digest]`, parsed and rendered exactly.

The grammar is that of the distribution specification. What people leave out is filled in by rules, so that two
references to the same thing become the same text.
"""

import re
from dataclasses import dataclass
from typing import Final

DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
NAME_LIMIT: Final = 255
TEXT_LIMIT: Final = 512

_LABEL: Final = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST: Final = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]{{2,45}}\])(?::([0-9]{{1,5}}))?")
_PART: Final = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REPOSITORY: Final = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_LARGEST_PORT: Final = 65535


class InvalidReferenceError(ValueError):
    """It is no reference to an image; `str()` says what is wrong with it."""


class NoDefaultRegistryError(InvalidReferenceError):
    """It names no registry, and none stands for that."""


@dataclass(frozen=True, slots=True)
class Naming:
    """What is filled into a reference that leaves something out."""

    default_registry: str = ""
    """Empty: a reference must name its registry."""
    library_registries: frozenset[str] = frozenset()
    """Registries where a repository of one part is short for `library/` and it."""


DEFAULT_NAMING: Final = Naming()


@dataclass(frozen=True, slots=True)
class Reference:
    """One image in one registry. At least one of tag and digest is there; the digest decides."""

    registry: str
    repository: str
    tag: str | None
    digest: str | None

    def __str__(self) -> str:
        """Render the canonical form: nothing left out."""
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.registry}/{self.repository}{tag}{digest}"

    @property
    def wanted(self) -> str:
        """What to ask the registry for."""
        if self.digest is not None:
            return self.digest
        return self.tag or "latest"


def parse(text: str, naming: Naming = DEFAULT_NAMING) -> Reference:
    """Read a reference. InvalidReferenceError."""
    if not text or len(text) > TEXT_LIMIT:
        raise InvalidReferenceError(f"a reference has 1 to {TEXT_LIMIT} characters")
    rest, at, digest = text.partition("@")
    if at and not DIGEST.fullmatch(digest):
        raise InvalidReferenceError("what follows @ must be sha256: and 64 lower-case hexadecimal digits")
    host, repository = _split_host(rest)
    repository, colon, tag = repository.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise InvalidReferenceError(f"{tag!r} is no tag: letters, digits, _ . - and at most 128 of them")
    if not _REPOSITORY.fullmatch(repository):
        raise InvalidReferenceError(
            f"{repository!r} is no repository: lower-case letters and digits, joined by . _ - or /"
        )
    if host is None and not naming.default_registry:
        raise NoDefaultRegistryError("it names no registry, and no default registry is set")
    registry = canonical_host(naming.default_registry if host is None else host)
    if "/" not in repository and registry in naming.library_registries:
        repository = f"library/{repository}"
    if len(registry) + 1 + len(repository) > NAME_LIMIT:
        raise InvalidReferenceError(f"registry and repository together have more than {NAME_LIMIT} characters")
    return Reference(registry, repository, tag or (None if at else "latest"), digest or None)


def familiar(reference: Reference, naming: Naming = DEFAULT_NAMING) -> str:
    """Render the shortest text that `parse` reads as this reference."""
    repository = reference.repository
    if reference.registry in naming.library_registries:
        short = repository.removeprefix("library/")
        repository = repository if "/" in short else short
    whole = str(Reference("", repository, reference.tag, reference.digest)).removeprefix("/")
    default = canonical_host(naming.default_registry) if naming.default_registry else ""
    if reference.registry == default and _split_host(whole)[0] is None:
        return whole
    return f"{reference.registry}/{whole}"


def names_registry(text: str) -> bool:
    """Tell whether a reference says in which registry it is."""
    return _split_host(text)[0] is not None


def canonical_host(text: str) -> str:
    """Check a `host[:port]` and return it as it is compared: lower case. InvalidReferenceError."""
    match = _HOST.fullmatch(text)
    if match is None or (match[1] is not None and not 0 < int(match[1]) <= _LARGEST_PORT):
        raise InvalidReferenceError(f"{text!r} is no host and port of a registry")
    host = text.lower()
    return "docker.io" if host == "index.docker.io" else host


def _split_host(text: str) -> tuple[str | None, str]:
    """A first part is a host if it could be no part of a repository, or is `localhost`."""
    first, slash, rest = text.partition("/")
    if slash and (first == "localhost" or first != first.lower() or "." in first or ":" in first):
        return first, rest
    return None, text
