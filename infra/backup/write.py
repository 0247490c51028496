"""Makes a backup while everything runs, or while nothing does."""

import gzip
import hashlib
import io
import os
import re
import secrets
import shutil
import socket
import tarfile
import time
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO, Final

from api.config import Settings
from infra.backup import ledger, manifest
from infra.backup.manifest import Entry, Manifest
from infra.config import LauncherConfig
from infra.launcher import account, as_user, told, untrusted
from infra.launcher.account import LauncherError
from infra.launcher.as_user import CommandFailedError
from infra.launcher.told import UntoldError
from infra.launcher.untrusted import UntrustedError

MOST_DATABASE_BYTES: Final = 64 << 30
WORK_PREFIX: Final = ".backup-"
_SECRET_BYTES: Final = 32
_MOST_KEYS: Final = 64 * 1024
_COPY_SECONDS: Final = 600
_MOST_WORDS: Final = 64 * 1024
_BLOCK_BYTES: Final = 1 << 20
_COMPRESSION: Final = 1
"""Images hardly shrink, and a database should be safe soon."""


@dataclass(frozen=True, slots=True)
class _Part:
    """One file to be: open for reading at its beginning."""

    name: str
    file: BinaryIO


def write(config: LauncherConfig, env: Mapping[str, str], target: Path, *, images: bool, force: bool) -> Manifest:
    """Write a backup to `target`, which is whole or not there, readable by root alone. LauncherError."""
    account.require_root()
    if os.path.lexists(target) and not force:
        raise LauncherError(f"{target} is there already", "choose another name, or give --force")
    with ExitStack() as stack:
        parts: list[_Part] = []
        database = _database(config, env, stack, parts)
        schema = _node(config, stack, parts)
        _images(config, stack, parts, contents=images)
        _add(stack, parts, manifest.SETTINGS, _settings(env))
        described = Manifest(
            version=version("sandlot-server"),
            made_at=datetime.now(UTC).isoformat(timespec="seconds"),
            host=socket.gethostname(),
            instance=config.instance,
            database=database,
            ledger=schema,
            files=[_entry(part) for part in parts],
        )
        with _whole(target, force=force) as file:
            _pack(file, described, parts)
    return described


def _database(config: LauncherConfig, env: Mapping[str, str], stack: ExitStack, parts: list[_Part]) -> str | None:
    """Add the api's database and keys; returns its last migration."""
    if not Settings().store_url.startswith("sqlite"):
        raise LauncherError(
            "the database is not SQLite, and has backups of its own",
            "back it up with its own tool; unset SANDLOT_DATABASE_URL to back up the rest",
        )
    owner = account.ensure_account(config.api_user)
    with suppress(FileNotFoundError, UntoldError):
        _add(stack, parts, manifest.ROOT_KEY, told.key(config.key_path).encode() + b"\n")
    try:
        with suppress(FileNotFoundError):
            secret = untrusted.content(config.api_data_dir / "secret", owner.pw_uid, _SECRET_BYTES)
            _add(stack, parts, manifest.SECRET, secret)
        for name in (manifest.SECRET_KEYS, manifest.TOKEN_KEYS):
            with suppress(FileNotFoundError):
                held = untrusted.content(config.api_data_dir / Path(name).name, owner.pw_uid, _MOST_KEYS)
                _add(stack, parts, name, held)
        if not os.path.lexists(config.api_data_dir / "api.db"):
            return None
        work = stack.enter_context(_workplace(config.data_dir, owner.pw_uid, owner.pw_gid))
        head = _copied(config, env, work)
        descriptor = untrusted.opened(work / "api.db", owner.pw_uid, MOST_DATABASE_BYTES)
    except UntrustedError as error:
        raise LauncherError(
            str(error), "the api's user has put it there: look into that before anything else"
        ) from None
    parts.append(_Part(manifest.DATABASE, stack.enter_context(os.fdopen(descriptor, "rb"))))
    return head


@contextmanager
def _workplace(data_dir: Path, uid: int, gid: int) -> Generator[Path]:
    """A directory of the api's user below one of root's, so that nobody can put another in its place."""
    for left in data_dir.glob(f"{WORK_PREFIX}*"):
        if time.time() - left.lstat().st_mtime > _COPY_SECONDS * 2:
            shutil.rmtree(left, ignore_errors=True)  # of a backup that was killed
    outer = data_dir / f"{WORK_PREFIX}{secrets.token_hex(4)}"
    outer.mkdir(mode=0o711)
    outer.chmod(0o711)
    try:
        inner = outer / "api"
        inner.mkdir(mode=0o700)
        os.chown(inner, uid, gid)
        yield inner
    finally:
        shutil.rmtree(outer, ignore_errors=True)


def _copied(config: LauncherConfig, env: Mapping[str, str], work: Path) -> str:
    try:
        said = as_user.run(
            config,
            env,
            "infra.backup.copy_database",
            str(config.api_data_dir / "api.db"),
            str(work / "api.db"),
            most_bytes=_MOST_WORDS,
            seconds=_COPY_SECONDS,
        )
    except CommandFailedError as error:
        fix = "make room, or mend the database, then try again"
        raise LauncherError(f"the database could not be copied: {error}", fix) from None
    head = said.decode(errors="replace").strip()
    if re.fullmatch(r"\d{4}", head) is None:
        raise LauncherError("the database does not say its migration", "start the api once, then try again")
    return head


def _node(config: LauncherConfig, stack: ExitStack, parts: list[_Part]) -> int | None:
    """Add the node's ledger and identity; returns the ledger's schema."""
    for name in (manifest.NODE_KEY, manifest.NODE_ID):
        path = config.data_dir / Path(name).name
        if path.exists():
            _add(stack, parts, name, path.read_bytes())
    copied = ledger.copy(config)
    if copied is None:
        return None
    _add(stack, parts, manifest.LEDGER, copied)
    return ledger.schema_of(copied)


def _images(config: LauncherConfig, stack: ExitStack, parts: list[_Part], *, contents: bool) -> None:
    for path in sorted(config.images_dir.glob("*")):
        name = f"images/{path.name}"
        if re.fullmatch(r"[0-9a-f]{64}\.(json|erofs)", path.name) and (contents or path.suffix == ".json"):
            # An image that is removed meanwhile keeps its file as long as it is open.
            with suppress(FileNotFoundError):
                parts.append(_Part(name, stack.enter_context(path.open("rb"))))


def _settings(env: Mapping[str, str]) -> bytes:
    lines = [f"{name}={value}" for name, value in sorted(env.items()) if name.startswith("SANDLOT_")]
    # A client's key is in the environment of whoever calls; it is no setting.
    return "".join(f"{line}\n" for line in lines if not line.startswith("SANDLOT_API_KEY=")).encode()


def _add(stack: ExitStack, parts: list[_Part], name: str, content: bytes) -> None:
    parts.append(_Part(name, stack.enter_context(io.BytesIO(content))))


def _entry(part: _Part) -> Entry:
    digest, size = hashlib.sha256(), 0
    while block := part.file.read(_BLOCK_BYTES):
        digest.update(block)
        size += len(block)
    part.file.seek(0)
    return Entry(name=part.name, size=size, sha256=digest.hexdigest())


def _pack(file: BinaryIO, described: Manifest, parts: list[_Part]) -> None:
    head = described.model_dump_json(indent=1).encode()
    with (
        gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=_COMPRESSION) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as archive,
    ):
        _member(archive, manifest.NAME, len(head), io.BytesIO(head))
        for entry, part in zip(described.files, parts, strict=True):
            _member(archive, entry.name, entry.size, part.file)


def _member(archive: tarfile.TarFile, name: str, size: int, file: BinaryIO) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, 0o600, int(time.time())
    archive.addfile(member, file)


@contextmanager
def _whole(target: Path, *, force: bool) -> Generator[BinaryIO]:
    """Write a file that gets its name once it is whole; killed before, nothing of it stays."""
    with ExitStack() as stack:
        try:
            place = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, place)
            descriptor = os.open(target.parent, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            file = stack.enter_context(os.fdopen(descriptor, "wb"))
            yield file
            file.flush()
            os.fsync(descriptor)
            name = target.name if not force else f".{target.name}.{os.getpid()}"
            os.link(f"/proc/self/fd/{descriptor}", name, dst_dir_fd=place, follow_symlinks=True)
            if force:
                os.replace(name, target.name, src_dir_fd=place, dst_dir_fd=place)
        except OSError as error:
            raise LauncherError(
                f"{target} cannot be written: {error.strerror}", "choose a directory on a local disk that has room"
            ) from error
