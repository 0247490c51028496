"""Pulling images from the command line: settings, names, progress, and every failure with what to do about it."""

import platform as machine
import sys
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from pydantic import ValidationError

from infra.config import LauncherConfig
from infra.launcher.account import LauncherError
from sandboxd.config import NodeConfig
from sandboxd.contract.messages import NodeImage
from sandboxd.contract.references import InvalidReferenceError, Naming, NoDefaultRegistryError, familiar, parse
from sandboxd.images.base import ImageDamagedError
from sandboxd.images.erofs import ImageBuildError
from sandboxd.images.failures import ImageReason, ImageSourceError
from sandboxd.images.intake import Intake
from sandboxd.images.manifests import Descriptor, Platform, parse_platform
from sandboxd.images.opening import StoreSettingsError, image_store
from sandboxd.images.registries import Registries, RegistrySettingsError, make_registries
from sandboxd.images.sources import Found
from sandboxd.images.store import ImageStore
from sandboxd.images.tokens import Credential
from sandboxd.packs.keys import PUBLIC

_MIB: Final = 1024 * 1024
_DRAW_SECONDS: Final = 0.2
_NOWHERE: Final = "local.invalid"
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}

_FIXES: Final = {
    ImageReason.REGISTRY_UNAVAILABLE: "check that the registry can be reached, then run the same again: it goes on",
    ImageReason.UNAUTHORIZED: "give --username and --password-stdin, or credentials in SANDLOT_REGISTRY_AUTH_FILE",
    ImageReason.NOT_FOUND: "check the spelling of the reference; a private image also needs credentials",
    ImageReason.WRONG_PLATFORM: "choose another tag, or one of those platforms with --platform",
    ImageReason.CORRUPT: "push or save the image again; nothing of it was kept",
    ImageReason.TOO_LARGE: "make room on the node's disk, or use a smaller image",
    ImageReason.STORE_UNAVAILABLE: "check SANDLOT_IMAGE_STORE and what it names, then run the same again: it goes on",
    ImageReason.UNSAFE_CONTENT: "use an image without it; nothing of it was kept",
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for on the command line."""

    reference: str
    name: str | None
    platform: str
    insecure: bool = False
    username: str | None = None
    password: str | None = field(default=None, repr=False)


async def pull_image(config: LauncherConfig, wanted: Wanted) -> NodeImage:
    """Fetch an image into the node's store. LauncherError."""
    known = registries()
    try:
        reference = parse(wanted.reference, known.naming)
    except NoDefaultRegistryError as error:
        raise LauncherError(
            f"{wanted.reference[:100]} names no registry",
            "write registry/repository[:tag], or set SANDLOT_DEFAULT_REGISTRY",
        ) from error
    except InvalidReferenceError as error:
        raise LauncherError(
            f"{wanted.reference[:100]!r} is no image reference: {error}", "write [registry/]repository[:tag][@sha256:…]"
        ) from error
    credential = Credential(wanted.username, wanted.password or "") if wanted.username is not None else None
    names = [familiar(reference, known.naming)] if wanted.name is None else naming([wanted.name])
    async with taking_in(config, str(reference)) as (intake, watch, _):
        source = known.source(reference, credential, insecure=wanted.insecure)
        async with source:
            return await intake.take(
                source,
                platform_of(wanted.platform),
                kind="registry",
                reference=str(reference),
                names=names,
                watch=watch,
            )


@asynccontextmanager
async def taking_in(config: LauncherConfig, what: str) -> AsyncGenerator[tuple[Intake, "Progress", ImageStore]]:
    """Open the store for an intake; what goes wrong becomes a LauncherError with its fix."""
    store = store_of(config)
    await store.open()
    watch = Progress()
    try:
        yield Intake(store, reserve_bytes=node_config().disk_reserve_mib * _MIB, domain=PUBLIC), watch, store
    except ImageSourceError as error:
        raise LauncherError(f"{what}: {error.reason}: {error}", fix_of(error)) from error
    except (ImageBuildError, ImageDamagedError) as error:
        reason = ImageReason.UNSAFE_CONTENT
        raise LauncherError(f"{what}: {reason}: {error}", _FIXES[reason]) from error
    except OSError as error:
        raise LauncherError(f"{what}: {error}", "make room on the node's disk, then run the same again") from error
    finally:
        watch.end()


def naming(names: Sequence[str]) -> list[str]:
    """Render names of images as short as a pull would name them. LauncherError."""
    rules = registries().naming
    if not rules.default_registry:
        rules = Naming(_NOWHERE)  # the names of images on this node need no registry
    checked: list[str] = []
    for name in names:
        try:
            checked.append(familiar(parse(name.partition("@")[0], rules), rules))
        except InvalidReferenceError as error:
            raise LauncherError(f"{name[:100]!r} is no name of an image: {error}", "give another NAME:TAG") from error
    return checked


def platform_of(text: str) -> Platform:
    """Read a platform; nothing stands for this machine's. LauncherError."""
    if not text:
        return Platform("linux", _ARCHITECTURES.get(machine.machine(), machine.machine()))
    try:
        return parse_platform(text)
    except ValueError as error:
        raise LauncherError(str(error), "write --platform linux/amd64") from error


def fix_of(error: ImageSourceError) -> str:
    """Say what to do about it."""
    return _FIXES[error.reason]


def store_of(config: LauncherConfig) -> ImageStore:
    """Make the node's images, not open yet. LauncherError."""
    try:
        return image_store(node_config().model_copy(update={"data_dir": config.data_dir}))
    except StoreSettingsError as error:
        raise LauncherError(f"settings of the store: {error}", "correct them; docs/settings.md lists them") from error


def node_config() -> NodeConfig:
    try:
        return NodeConfig()
    except ValidationError as error:
        names = ", ".join(f"SANDLOT_{str(row['loc'][0]).upper()}: {row['msg']}" for row in error.errors())
        raise LauncherError(f"settings are not valid: {names}", "correct these environment variables") from error


def registries() -> Registries:
    config = node_config()
    try:
        return make_registries(
            default_registry=config.default_registry,
            library_registries=config.library_registries,
            insecure_registries=config.insecure_registries,
            private_registries=config.private_registries,
            mirrors=config.registry_mirrors,
            auth_file=config.registry_auth_file,
        )
    except RegistrySettingsError as error:
        raise LauncherError(f"settings of registries: {error}", "correct them; docs/settings.md lists them") from error


class Progress:
    """What a person sees of an intake: one line that changes on a terminal, else a line for each step."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._total = 0
        self._done = 0
        self._drawn = 0.0
        self._open = False

    def found(self, found: Found) -> None:
        self._total = found.download_bytes
        self._line(f"{found.digest}: {len(found.manifest.layers)} layers, {_mib(self._total)}")

    def waiting(self) -> None:
        self._line("another process takes this image in; waiting for it")

    def moved(self, count: int) -> None:
        """Called from any thread."""
        self._done += count
        now = time.monotonic()
        if self._live and now - self._drawn >= _DRAW_SECONDS:
            self._drawn = now
            self._open = True
            percent = 100 * self._done // max(self._total, 1)
            print(
                f"\r\x1b[K{_mib(self._done)} of {_mib(self._total)}  {percent} %", end="", file=sys.stderr, flush=True
            )

    def fetched(self, layer: Descriptor) -> None:
        if not self._live:
            self._line(f"{layer.digest}: {_mib(layer.size)}")

    def building(self) -> None:
        self._line("making the image")

    def built(self, dropped: Mapping[str, int]) -> None:
        if dropped:
            self._line(f"left out: {', '.join(f'{count} {what}' for what, count in sorted(dropped.items()))}")

    def end(self) -> None:
        if self._open:
            self._open = False
            print(file=sys.stderr, flush=True)

    def _line(self, text: str) -> None:
        self.end()
        print(text, file=sys.stderr, flush=True)


def _mib(count: int) -> str:
    return f"{count / _MIB:.1f} MiB"
