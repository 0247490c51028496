"""What a backup says of itself, and whether this program may restore it. Pure."""

import json
import re
from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

FORMAT: Final = 1
NAME: Final = "manifest.json"
MOST_BYTES: Final = 16 << 20

DATABASE: Final = "api/api.db"
ROOT_KEY: Final = "api/root-key"
SECRET: Final = "api/secret"  # noqa: S105 - the name of a file
SECRET_KEYS: Final = "api/secret-keys"  # noqa: S105 - the same
"""What secrets in the database are sealed with."""
TOKEN_KEYS: Final = "api/token-keys"  # noqa: S105 - the same
LEDGER: Final = "node/ledger.db"
NODE_KEY: Final = "node/node.key"
NODE_ID: Final = "node/node.json"
SETTINGS: Final = "settings/environment"
RESTORED_SETTINGS: Final = "settings.restored"
"""Where a restore puts them: they are for the operator to compare with."""

_Name = Annotated[
    str,
    StringConstraints(
        pattern=r"^(api/(api\.db|root-key|secret|secret-keys|token-keys)|node/(ledger\.db|node\.key|node\.json)"
        r"|images/[0-9a-f]{64}\.(json|erofs)|settings/environment)$"
    ),
]


class UnfitError(Exception):
    """The backup cannot be restored by this program."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Entry(_Strict):
    """One file of a backup."""

    name: _Name
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(_Strict):
    """The first file of a backup. The others follow in this order."""

    format: Literal[1] = FORMAT
    version: str = Field(pattern=r"^\d+\.\d+\.\d+$")
    """Of the program that made it."""
    made_at: str
    host: str
    instance: str
    database: str | None = Field(pattern=r"^\d{4}$")
    """The last migration of the database in it."""
    ledger: int | None
    """The schema of the ledger in it."""
    files: list[Entry]


class Known(_Strict):
    """What the program that restores can read."""

    version: str
    database: str
    ledger: int


def parse(content: bytes, known: Known) -> Manifest:
    """Read a manifest. UnfitError: it is none, or was made by a newer program than this."""
    try:
        document: Any = json.loads(content)
        newer = document["format"] > FORMAT or _is_newer(str(document["version"]), known.version)
    except (ValueError, KeyError, TypeError) as error:
        raise UnfitError("it is not a backup of Sandlot") from error
    if newer:
        raise UnfitError(f"it was made by version {document['version']!s:.20}; this is {known.version}")
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        raise UnfitError(f"its manifest is damaged: {error.error_count()} faults") from error
    if manifest.database is not None and manifest.database > known.database:
        raise UnfitError(f"its database is of migration {manifest.database}; this program knows {known.database}")
    if manifest.ledger is not None and manifest.ledger > known.ledger:
        raise UnfitError(f"its ledger has schema {manifest.ledger}; this program knows {known.ledger}")
    names = [entry.name for entry in manifest.files]
    if len(set(names)) != len(names):
        raise UnfitError("its manifest names a file twice")
    return manifest


def _is_newer(version: str, known: str) -> bool:
    return _numbers(version) > _numbers(known)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d{1,9}", version)[:3])


def targets(names: Iterable[str]) -> list[str]:
    """Return where in the data directory what a backup holds belongs, and what of an older state must go with it."""
    places: list[str] = []
    held = list(names)
    if any(name.startswith("api/") for name in held):
        places.append("api")
    if LEDGER in held:
        places += ["ledger.db", "ledger.db-wal", "ledger.db-shm"]
    places += [name.removeprefix("node/") for name in held if name in {NODE_KEY, NODE_ID}]
    places += [name for name in held if name.startswith("images/")]
    if SETTINGS in held:
        places.append(RESTORED_SETTINGS)
    return places
