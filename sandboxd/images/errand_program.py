"""`python -m sandboxd.images.errand_program UID DIRECTORY [ARCHIVE]`: fetches one image, as nobody in particular.

It starts as root to give that up for good: everything it needs is loaded first, then it gets a mount namespace in which
its directory lies over `/tmp`, a user that owns nothing else, limits, and no way back. Only then does it read what it
is to do, from its standard input.
"""

import asyncio
import ctypes
import dataclasses
import encodings.idna  # noqa: F401  # pyright: ignore[reportUnusedImport] - looked up by name later, when files are out of reach
import json
import os
import resource
import signal
import ssl
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from threading import Event as Stop
from types import TracebackType
from typing import Any, Final, Self

import aiohttp.connector  # noqa: F401  # pyright: ignore[reportUnusedImport] - loads what it imports late

from programs.libc import PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, PR_SET_PDEATHSIG, check, libc, prctl
from sandboxd.contract.images import ImageOverrides
from sandboxd.contract.references import Naming, parse
from sandboxd.images.base import ImageConfig
from sandboxd.images.erofs import ImageBuildError, SourceDamagedError, SourceTooLargeError
from sandboxd.images.errands import ARCHIVE, LINE_BYTES, PLACE, STORE, Errand
from sandboxd.images.failures import ImageReason, ImageSourceError
from sandboxd.images.intake import Intake
from sandboxd.images.layers import build_from_tar
from sandboxd.images.layouts import FileSource
from sandboxd.images.manifests import Descriptor, Platform, parse_platform
from sandboxd.images.partial import Moved
from sandboxd.images.registries import Registries
from sandboxd.images.sources import Found, Source
from sandboxd.images.store import ImageStore
from sandboxd.images.threads import in_thread
from sandboxd.images.tokens import Credential
from sandboxd.images.tree import ImportLimits

_CLONE_NEWNS: Final = 0x00020000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT, _MS_BIND = 0x1, 0x2, 0x4, 0x8, 0x20, 0x1000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_OPEN_FILES: Final = 4096
_TELL_SECONDS: Final = 0.25


def main(arguments: list[str]) -> None:
    """Give up root, then run the errand."""
    uid, directory, *rest = arguments
    _confine(int(uid), Path(directory), Path(rest[0]) if rest else None)
    errand = Errand.model_validate_json(sys.stdin.buffer.readline(LINE_BYTES))
    asyncio.run(_errand(errand))


def _confine(uid: int, directory: Path, archive: Path | None) -> None:
    parent = os.getppid()
    ssl.create_default_context()
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
    if os.geteuid() == 0:
        check(libc.unshare(_CLONE_NEWNS), "unshare")
        _mount(None, Path("/"), _MS_REC | _MS_PRIVATE)
        # Opened before one of them covers where the other lies.
        opened = [os.open(path, os.O_PATH) for path in (directory, archive) if path is not None]
        for descriptor, target, more in zip(opened, (PLACE, f"{PLACE}/{ARCHIVE}"), (0, _MS_RDONLY), strict=False):
            _bind(Path(f"/proc/self/fd/{descriptor}"), Path(target), more)
            os.close(descriptor)
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    os.chdir(PLACE)
    prctl(PR_SET_NO_NEW_PRIVS, 1, "no_new_privs")
    prctl(PR_SET_DUMPABLE, 0, "dumpable")
    # After the change of user, which clears it; and the node agent may have ended before it was set.
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL, "pdeathsig")
    if os.getppid() != parent:
        sys.exit(1)


def _bind(source: Path, target: Path, more: int) -> None:
    _mount(source, target, _MS_BIND)
    _mount(None, target, _MS_BIND | _MS_REMOUNT | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC | more)


def _mount(source: Path | None, target: Path, flags: int) -> None:
    of = b"none" if source is None else os.fsencode(source)
    check(libc.mount(of, os.fsencode(target), None, ctypes.c_ulong(flags), None), f"mount on {target}")


def _tell(event: str, **fields: Any) -> None:
    """Say it in one write, whole."""
    line = json.dumps({"of": {"event": event, **fields}}, separators=(",", ":")).encode() + b"\n"
    view = memoryview(line)
    while view:
        view = view[os.write(1, view) :]


async def _errand(errand: Errand) -> None:
    try:
        await _fetch(errand)
    except ImageSourceError as error:
        _tell("refused", reason=error.reason, text=str(error)[:4000])
    except SourceTooLargeError as error:
        _tell("refused", reason=ImageReason.TOO_LARGE, text=str(error)[:4000])
    except SourceDamagedError as error:
        _tell("refused", reason=ImageReason.CORRUPT, text=str(error)[:4000])
    except ImageBuildError as error:
        _tell("refused", reason=ImageReason.UNSAFE_CONTENT, text=str(error)[:4000])
    except OSError as error:
        words = error.strerror or type(error).__name__
        _tell("refused", reason=ImageReason.TOO_LARGE, text=f"the node's disk does not take it: {words}")


async def _fetch(errand: Errand) -> None:
    store = ImageStore(Path(PLACE, STORE))
    await store.open()
    limits = ImportLimits(size_bytes=errand.largest_bytes)
    platform = parse_platform(errand.platform)
    if errand.kind == "rootfs":
        await _fetch_rootfs(errand, store, limits, platform)
        return
    watch = _Watch()
    intake = Intake(store, limits, reserve_bytes=errand.reserve_bytes)
    with store.workplace() as spool:
        async with _source(errand, limits, spool) as opened:
            source = _Asked(opened, errand.config, watch)
            image = await intake.take(
                source, platform, kind="errand", reference=errand.reference or errand.kind, names=(), watch=watch
            )
    _made(image.digest, str(source.platform), source.config, watch.dropped, source.digest)


def _source(errand: Errand, limits: ImportLimits, spool: Path) -> AbstractAsyncContextManager[Source]:
    if errand.kind != "registry":
        return FileSource(Path(PLACE, ARCHIVE), limit=limits.size_bytes, spool=spool)
    said = errand.registries
    registries = Registries(
        naming=Naming("", frozenset(said.library)),
        insecure=frozenset(said.insecure),
        private=frozenset(said.private),
        mirrors=said.mirrors,
        credentials={host: Credential(name, password) for host, (name, password) in said.credentials.items()},
    )
    return registries.source(parse(errand.reference, registries.naming))


async def _fetch_rootfs(errand: Errand, store: ImageStore, limits: ImportLimits, platform: Platform) -> None:
    """A bare root file system describes nothing: what was asked for is its config."""
    archive = Path(PLACE, ARCHIVE)
    size = archive.stat().st_size
    config = overridden(ImageConfig(), errand.config)
    stop = Stop()
    with store.workplace() as work:
        target = work / "image.erofs"
        _tell("said", text="making the image")
        apart = _apart(config)
        built = await in_thread(
            lambda: build_from_tar(archive, target, spool=work, limits=limits, apart=apart, stop=stop), stop
        )
        image = await store.register_file(target, (), config, built.sum.digest)
    _tell("moved", done_bytes=size, total_bytes=size)
    _made(image.digest, str(platform), config, built.dropped, None)


def _apart(config: ImageConfig) -> bytes:
    """One tree with two configs is two images."""
    return json.dumps(dataclasses.asdict(config), sort_keys=True).encode()


def overridden(config: ImageConfig, wanted: ImageOverrides | None) -> ImageConfig:
    """Return a config with what was asked for instead of what its source says."""
    if wanted is None:
        return config
    return dataclasses.replace(
        config,
        env=config.env | (wanted.env or {}),
        user=wanted.user or config.user,
        cwd=wanted.cwd or config.cwd,
        entrypoint=config.entrypoint if wanted.entrypoint is None else tuple(wanted.entrypoint),
        cmd=config.cmd if wanted.cmd is None else tuple(wanted.cmd),
    )


def _made(
    digest: str, platform: str, config: ImageConfig, dropped: Mapping[str, int], origin_digest: str | None
) -> None:
    _tell(
        "made",
        digest=digest,
        platform=platform,
        origin_digest=origin_digest,
        dropped={name[:100]: count for name, count in dropped.items() if count},
        **dataclasses.asdict(config),
    )


class _Asked:
    """A source with what was asked for of its config. Once it is found, whoever sent us says whether to go on."""

    def __init__(self, source: Source, wanted: ImageOverrides | None, watch: "_Watch") -> None:
        self._source = source
        self._wanted = wanted
        self._watch = watch
        self.digest = ""
        self.platform: Platform | None = None
        self.config = ImageConfig()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    async def find(self, platform: Platform) -> Found:
        found = await self._source.find(platform)
        described = found.described
        config = overridden(described.config, self._wanted)
        self.digest, self.platform, self.config = found.digest, described.platform, config
        total = self._watch.total = found.download_bytes
        layers = len(found.manifest.layers)
        _tell("found", digest=found.digest, platform=str(described.platform), total_bytes=total, layers=layers)
        if (await in_thread(lambda: sys.stdin.buffer.readline(16))).strip() != b"go":
            sys.exit(0)
        return dataclasses.replace(found, described=dataclasses.replace(described, config=config))

    async def fetch(self, layer: Descriptor, directory: Path, moved: Moved) -> Path:
        return await self._source.fetch(layer, directory, moved)


class _Watch:
    """Tells how an intake goes on, not too often."""

    def __init__(self) -> None:
        self.total = 0
        self.dropped: Mapping[str, int] = {}
        self._done = 0
        self._told = 0.0

    def found(self, found: Found) -> None:
        pass

    def waiting(self) -> None:
        pass

    def moved(self, count: int) -> None:
        """Called from any thread."""
        self._done = max(0, self._done + count)
        now = time.monotonic()
        if now - self._told >= _TELL_SECONDS:
            self._told = now
            self._tell()

    def fetched(self, layer: Descriptor) -> None:
        _tell("said", text=f"{layer.digest}: {layer.size} bytes")
        self._tell()

    def building(self) -> None:
        self._tell()
        _tell("said", text="making the image")

    def built(self, dropped: Mapping[str, int]) -> None:
        self.dropped = dropped
        if lost := {name: count for name, count in dropped.items() if count}:
            words = ", ".join(f"{count} {what}" for what, count in sorted(lost.items()))
            _tell("said", text=f"left out: {words}"[:4000])

    def _tell(self) -> None:
        _tell("moved", done_bytes=self._done, total_bytes=max(self.total, self._done))


if __name__ == "__main__":
    main(sys.argv[1:])
