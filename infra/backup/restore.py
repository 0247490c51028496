"""Puts a backup in place of what is there, all or nothing."""

import hashlib
import os
import secrets
import shutil
import tarfile
import time
import zlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import IO, Final, NamedTuple

from infra.backup import ledger, manifest
from infra.backup.ledger import Standing
from infra.backup.manifest import Entry, Known, Manifest, UnfitError
from infra.config import LauncherConfig
from infra.doctor.leftovers import listens
from infra.launcher import account, lock, swap
from infra.launcher.account import LauncherError
from infra.setup.places import REPOSITORY
from sandboxd.ledger.base import SCHEMA_VERSION

STAGE_PREFIX: Final = ".restore-"
ASIDE_PREFIX: Final = "replaced-"
_BLOCK_BYTES: Final = 1 << 20
_MIGRATIONS: Final = REPOSITORY / "api" / "migrations" / "versions"
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class Restored(NamedTuple):
    """What came of it."""

    manifest: Manifest
    standing: Standing
    aside: Path | None
    """Where what was replaced is now."""


def restore(
    config: LauncherConfig, source: Path, *, force: bool, moved: Callable[[str], None] | None = None
) -> Restored:
    """Restore a backup into the data directory. LauncherError, after which everything is as it was.

    `moved` is told each thing that is in its new place, before all of them are.
    """
    account.require_root()
    config.run_dir.mkdir(parents=True, exist_ok=True)
    with lock.hold(config.lock_path, config.instance):
        for name, path in (("node agent", config.node_socket), ("api", config.api_socket)):
            if listens(path):
                raise LauncherError(f"the {name} of instance '{config.instance}' is running", "stop it first")
        account.ensure_directories(config, account.ensure_account(config.api_user))
        swap.undo(config.data_dir)
        for left in config.data_dir.glob(f"{STAGE_PREFIX}*"):
            shutil.rmtree(left)  # nobody else restores: the lock is held here
        fresh = config.data_dir / f"{STAGE_PREFIX}{secrets.token_hex(4)}"
        fresh.mkdir(mode=0o700)
        try:
            return _restore(config, source, fresh, force=force, moved=moved)
        except (tarfile.TarError, EOFError, OSError, zlib.error, UnfitError) as error:
            raise LauncherError(f"{source} cannot be restored: {error}", "use another backup") from error
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def newest_migration() -> str:
    """Return the last migration this program knows, from the names of its scripts: the tool for them is large."""
    return max(path.name[:4] for path in _MIGRATIONS.glob("[0-9]*_*.py"))


def _restore(
    config: LauncherConfig, source: Path, fresh: Path, *, force: bool, moved: Callable[[str], None] | None
) -> Restored:
    known = Known(version=version("sandlot-server"), database=newest_migration(), ledger=SCHEMA_VERSION)
    with tarfile.open(source, mode="r|gz") as archive:
        described = _described(archive, known)
        names = manifest.targets(entry.name for entry in described.files)
        _refuse_to_overwrite(config, names, force=force)
        _unpack(archive, described, fresh)
    standing = Standing(0, 0)
    if (fresh / manifest.LEDGER).exists():
        standing = ledger.settle(fresh / manifest.LEDGER, _BOOT_ID.read_text().strip())
    _arrange(config, fresh)
    aside = config.data_dir / f"{ASIDE_PREFIX}{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    config.images_dir.mkdir(mode=0o755, exist_ok=True)
    swap.put(config.data_dir, fresh, aside, names, moved)
    if not any(path.is_file() for path in aside.rglob("*")):
        shutil.rmtree(aside)
    return Restored(described, standing, aside if aside.exists() else None)


def _refuse_to_overwrite(config: LauncherConfig, names: list[str], *, force: bool) -> None:
    there = [name for name in names if name != manifest.RESTORED_SETTINGS and _is_there(config.data_dir / name)]
    if there and not force:
        raise LauncherError(
            f"{config.data_dir} holds an installation already ({', '.join(there[:4])})",
            "restore into an empty SANDLOT_DATA_DIR, or give --force: what is there is kept aside",
        )


def _is_there(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() and not path.is_symlink() else os.path.lexists(path)


def _described(archive: tarfile.TarFile, known: Known) -> Manifest:
    first = archive.next()
    file = None if first is None or first.name != manifest.NAME else archive.extractfile(first)
    if first is None or file is None or first.size > manifest.MOST_BYTES:
        raise UnfitError("it is not a backup of Sandlot")
    return manifest.parse(file.read(), known)


def _unpack(archive: tarfile.TarFile, described: Manifest, fresh: Path) -> None:
    """Write each file the manifest names, in its order, and nothing else. UnfitError: one is missing or differs."""
    needed = sum(entry.size for entry in described.files)
    if needed > shutil.disk_usage(fresh).free:
        raise LauncherError(f"it needs {needed >> 20} MiB, and the disk has less", "make room, then try again")
    for entry in described.files:
        member = archive.next()
        if member is None or member.name != entry.name or not member.isreg() or member.size != entry.size:
            raise UnfitError(f"{entry.name} is not where its manifest says")
        file = archive.extractfile(member)
        if file is None or not _is_written(file, fresh / entry.name, entry):
            raise UnfitError(f"{entry.name} is not what its hash says")
    if archive.next() is not None:
        raise UnfitError("it holds more than its manifest says")


def _is_written(file: IO[bytes], target: Path, entry: Entry) -> bool:
    target.parent.mkdir(mode=0o700, exist_ok=True)
    digest = hashlib.sha256()
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as written:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            written.write(block)
        written.flush()
        os.fsync(descriptor)
    return digest.hexdigest() == entry.sha256


def _arrange(config: LauncherConfig, fresh: Path) -> None:
    """Lay what was unpacked out as the data directory is, with its owners and modes."""
    owner = account.ensure_account(config.api_user)
    if (fresh / "api").exists():
        for path in (*(fresh / "api").iterdir(), fresh / "api"):
            os.chown(path, owner.pw_uid, owner.pw_gid)
    for path in (fresh / "node").iterdir() if (fresh / "node").exists() else ():
        path.rename(fresh / path.name)
    for path in (fresh / "images").iterdir() if (fresh / "images").exists() else ():
        path.chmod(0o444 if path.suffix == ".erofs" else 0o644)
    settings = fresh / manifest.SETTINGS
    if settings.exists():
        settings.rename(fresh / manifest.RESTORED_SETTINGS)
