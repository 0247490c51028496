"""A node's images as its settings have them: the directory, and the store behind it."""

import hashlib
import json
import os
import re
import stat
from pathlib import Path
from typing import Any, Final, cast

from sandboxd.config import NodeConfig
from sandboxd.images.store import ImageStore
from sandboxd.packs.blobs import Blobs
from sandboxd.packs.bucket import BucketBlobs, Place
from sandboxd.packs.directory import DirectoryBlobs
from sandboxd.packs.store import PackStore

_MIB: Final = 1024 * 1024
_BUCKET: Final = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/([A-Za-z0-9_./-]{0,200}))?")
_NAMES: Final = {"access_key_id": "access_key", "secret_access_key": "secret_key", "session_token": "session_token"}
_FILE: Final = "SANDLOT_IMAGE_STORE_AUTH_FILE"
_FILE_LIMIT: Final = 64 * 1024


class StoreSettingsError(ValueError):
    """The settings of the store cannot be right; `str()` names the setting, never a credential."""


def image_store(config: NodeConfig) -> ImageStore:
    """Make the images of a node, not open yet. StoreSettingsError."""
    return ImageStore(
        config.images_dir,
        packs=pack_store(config),
        cache_bytes=config.image_cache_mib * _MIB,
        reserve_bytes=config.disk_reserve_mib * _MIB,
        shared=config.image_store is not None,
    )


def pack_store(config: NodeConfig) -> PackStore:
    """Make the store behind the images of a node. StoreSettingsError."""
    place = config.image_store_place
    # What is known of one store must not be taken for knowledge of another.
    called = hashlib.sha256(f"{config.image_store_endpoint} {place}".encode()).hexdigest()[:16]
    return PackStore(blobs(config), config.images_dir / ".packs" / called)


def blobs(config: NodeConfig) -> Blobs:
    """Make what keeps the bytes. StoreSettingsError."""
    place = config.image_store_place
    if "://" not in place:
        if not Path(place).is_absolute():
            raise StoreSettingsError(f"SANDLOT_IMAGE_STORE: {place} is no absolute path")
        return DirectoryBlobs(Path(place))
    found = _BUCKET.fullmatch(place)
    if found is None:
        raise StoreSettingsError(f"SANDLOT_IMAGE_STORE: {place} is neither a directory nor s3://bucket/prefix")
    return BucketBlobs(
        Place(
            bucket=found[1],
            prefix=(found[2] or "").strip("/"),
            endpoint=config.image_store_endpoint,
            region=config.image_store_region,
            **_credentials(config.image_store_auth_file),
        )
    )


def _credentials(path: Path | None) -> dict[str, str]:
    """Read a file that only its owner can read, who is root or who runs this. StoreSettingsError."""
    if path is None:
        return {}
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077 or status.st_uid not in (0, os.geteuid()):
                raise StoreSettingsError(f"{_FILE}: {path} must be a file that only its owner can read (mode 600)")
            data = file.read(_FILE_LIMIT)
    except OSError as error:
        raise StoreSettingsError(f"{_FILE}: {path}: {error.strerror}") from error
    try:
        document = cast("dict[str, Any]", json.loads(data))
        return {_NAMES[name]: str(value) for name, value in document.items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        # The cause would quote the file.
        raise StoreSettingsError(f"{_FILE}: {path} must hold JSON with {', '.join(_NAMES)}") from None
