"""What the operator said about registries, and credentials from a file: from a reference to a source of its image."""

import base64
import binascii
import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from sandboxd.contract.references import DEFAULT_NAMING, InvalidReferenceError, Naming, Reference, canonical_host
from sandboxd.images.addresses import Trust
from sandboxd.images.registry import Registry
from sandboxd.images.sources import RegistrySource
from sandboxd.images.tokens import Credential
from sandboxd.images.transport import Patience

_FILE_LIMIT: Final = 1024 * 1024


class RegistrySettingsError(Exception):
    """What was said about registries cannot be used; `str()` says why, without what is secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registries:
    """How registries are reached. All hosts in their canonical form."""

    naming: Naming = DEFAULT_NAMING
    insecure: frozenset[str] = frozenset()
    private: frozenset[str] = frozenset()
    mirrors: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    credentials: Mapping[str, Credential] = field(default_factory=dict[str, Credential])
    patience: Patience = field(default_factory=Patience)

    def source(
        self, reference: Reference, credential: Credential | None = None, *, insecure: bool = False
    ) -> RegistrySource:
        """Return where an image is; `credential` and `insecure` are said of this registry for this time."""
        own = self._registry(reference.registry, reference.repository, credential, insecure=insecure)
        mirrors = [
            self._registry(host, reference.repository, None, insecure=False)
            for host in self.mirrors.get(reference.registry, ())
        ]
        return RegistrySource(reference, [*mirrors, own])

    def _registry(self, host: str, repository: str, credential: Credential | None, *, insecure: bool) -> Registry:
        plain = insecure or host in self.insecure
        return Registry(
            host,
            repository,
            trust=Trust(insecure=plain, private=plain or host in self.private),
            credential=credential or self.credentials.get(host),
            patience=self.patience,
        )


def make_registries(
    *,
    default_registry: str,
    library_registries: Sequence[str],
    insecure_registries: Sequence[str],
    private_registries: Sequence[str],
    mirrors: Mapping[str, Sequence[str]],
    auth_file: Path | None,
) -> Registries:
    """Read the settings. RegistrySettingsError."""
    try:
        return Registries(
            naming=Naming(
                canonical_host(default_registry) if default_registry else "",
                frozenset(map(canonical_host, library_registries)),
            ),
            insecure=frozenset(map(canonical_host, insecure_registries)),
            private=frozenset(map(canonical_host, private_registries)),
            mirrors={canonical_host(host): tuple(map(canonical_host, hosts)) for host, hosts in mirrors.items()},
            credentials={} if auth_file is None else read_auth_file(auth_file),
        )
    except InvalidReferenceError as error:
        raise RegistrySettingsError(str(error)) from error


def read_auth_file(path: Path) -> dict[str, Credential]:
    """Read credentials as `docker login` writes them (`auths`). RegistrySettingsError.

    The file must be readable by its owner alone, who is root or who runs this.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077 or status.st_uid not in (0, os.geteuid()):
                raise RegistrySettingsError(f"{path} must be a file that only its owner can read (mode 600)")
            data = file.read(_FILE_LIMIT + 1)
    except OSError as error:
        raise RegistrySettingsError(f"{path} cannot be read: {error.strerror}") from error
    try:
        auths: object = json.loads(data[:_FILE_LIMIT])["auths"]
        rows = cast("dict[str, Any]", auths).items()
        return {_host(name): _credential(cast("dict[str, Any]", row)) for name, row in rows if row}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        # The cause would quote the file.
        raise RegistrySettingsError(f"{path} is no list of credentials as docker login writes it") from None


def _host(name: str) -> str:
    """`docker login` writes a host, or for its own registry the URL of an API of old."""
    host = name.removeprefix("https://").removeprefix("http://").partition("/")[0]
    return canonical_host(host)


def _credential(row: dict[str, Any]) -> Credential:
    if "auth" in row:
        try:
            username, colon, password = base64.b64decode(row["auth"], validate=True).decode().partition(":")
        except binascii.Error as error:
            raise ValueError("auth") from error
        if not colon:
            raise ValueError("auth")
        return Credential(username, password)
    return Credential(str(row["username"]), str(row["password"]))
