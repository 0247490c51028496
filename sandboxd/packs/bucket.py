"""Objects in a bucket of whatever speaks S3."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from sandboxd.packs.blobs import (
    Blob,
    BlobMissingError,
    StoreFullError,
    StoreReadOnlyError,
    StoreUnavailableError,
    checked,
    too_large,
    too_short,
)

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import S3Config

_CONNECT: Final = timedelta(seconds=5)
_REQUEST: Final = timedelta(seconds=60)
_RETRIES: Final = 4
_RETRY: Final = timedelta(seconds=20)
_FULL: Final = ("QuotaExceeded", "StorageFull", "InsufficientStorage", "507 ", "No space left")
_GONE: Final = ("NoSuchBucket",)
_SAID: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A bucket, and how it is reached."""

    bucket: str
    prefix: str
    endpoint: str | None = None
    """None: the one of Amazon for the region."""
    region: str = "us-east-1"
    access_key: str | None = None
    """None: requests are not signed."""
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)


class BucketBlobs:
    """One object of the bucket each. A write is one request, so that nothing of a broken one stays."""

    def __init__(self, place: Place) -> None:
        self._name = f"s3://{place.bucket}/{place.prefix}".rstrip("/")
        config: S3Config = {
            "region": place.region,
            "skip_signature": place.access_key is None,
            "virtual_hosted_style_request": False,
        }
        if place.endpoint is not None:
            config["endpoint"] = place.endpoint
        if place.access_key is not None and place.secret_key is not None:
            config["access_key_id"] = place.access_key
            config["secret_access_key"] = place.secret_key
        if place.session_token is not None:
            config["session_token"] = place.session_token
        self._store = S3Store(
            place.bucket,
            prefix=place.prefix or None,
            config=config,
            client_options={
                "allow_http": (place.endpoint or "").startswith("http://"),
                "connect_timeout": _CONNECT,
                "timeout": _REQUEST,
            },
            retry_config={"max_retries": _RETRIES, "retry_timeout": _RETRY},
        )

    def open(self) -> None:
        """Nothing is needed: the bucket is made by whoever pays for it."""

    def put(self, key: str, data: bytes) -> None:
        with self._told(key, writing=True):
            obstore.put(self._store, checked(key), data, use_multipart=False)

    def get(self, key: str, limit: int) -> bytes:
        with self._told(key):
            found = obstore.get(self._store, checked(key))
            if found.meta["size"] > limit:
                raise too_large(key, limit)
            return bytes(found.bytes())

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        if not length:
            return b""
        with self._told(key):
            try:
                data = bytes(obstore.get_range(self._store, checked(key), start=offset, length=length))
            except BaseError as error:
                if "416" in str(error) or "InvalidRange" in str(error):
                    raise too_short(key) from error
                raise
        if len(data) != length:
            raise too_short(key)
        return data

    def list(self, prefix: str) -> Iterator[Blob]:
        with self._told(prefix):
            listed: Iterable[Sequence[ObjectMeta]] = obstore.list(self._store, checked(prefix))  # pyright: ignore[reportUnknownMemberType]
            for batch in listed:
                for row in batch:
                    yield Blob(row["path"], row["size"], row["last_modified"].timestamp())

    def delete(self, key: str) -> None:
        try:
            with self._told(key, writing=True):
                obstore.delete(self._store, checked(key))
        except BlobMissingError:
            return

    @contextmanager
    def _told(self, key: str, *, writing: bool = False) -> Generator[None]:
        """Say in our words what the library says."""
        try:
            yield
        except FileNotFoundError as error:
            if any(word in str(error) for word in _GONE):
                raise StoreUnavailableError(f"{self._name}: there is no such bucket") from error
            raise BlobMissingError(f"{key} is not in the store") from error
        except (PermissionDeniedError, UnauthenticatedError) as error:
            kind = StoreReadOnlyError if writing else StoreUnavailableError
            raise kind(f"{self._name}: the credentials do not allow it") from error
        except BaseError as error:
            said = str(error).partition("\n")[0][:_SAID]
            if any(word in str(error) for word in _GONE):
                raise StoreUnavailableError(f"{self._name}: there is no such bucket") from error
            if "403 Forbidden" in said:
                raise StoreUnavailableError(f"{self._name}: the credentials do not allow it") from error
            if any(word in str(error) for word in _FULL):
                raise StoreFullError(f"{self._name}: {said}") from error
            raise StoreUnavailableError(f"{self._name}: {said}") from error
