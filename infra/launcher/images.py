"""Images from the command line: the node's own store, opened beside a running node."""

import tarfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from infra.config import LauncherConfig
from infra.launcher.account import LauncherError
from infra.launcher.pull import Progress, fix_of, naming, platform_of, store_of, taking_in
from sandboxd.contract.messages import NodeImage
from sandboxd.images.base import ImageConfig, ImageDamagedError
from sandboxd.images.erofs import ImageBuildError
from sandboxd.images.failures import ImageSourceError
from sandboxd.images.layouts import FileSource, is_image
from sandboxd.images.store import ImageInUseError, ImageStore, Record
from sandboxd.images.tree import ImportLimits
from sandboxd.ledger.reading import images_in_use
from sandboxd.packs.keys import PUBLIC


async def import_file(
    config: LauncherConfig,
    source: Path,
    name: str | None,
    *,
    user: str | None,
    cwd: str | None,
    env: list[str],
    ref: str | None,
    platform: str,
) -> NodeImage:
    """Make an image of what a file or directory is. LauncherError when it cannot be one."""
    if is_image(source):
        if user or cwd or env:
            raise LauncherError(f"{source} brings a config of its own", "leave out --user, --cwd and --env")
        return await _import_archive(config, source, name, ref, platform)
    if name is None:
        raise LauncherError(f"{source} is a root file system, which has no name of its own", "give a NAME after it")
    return await import_image(config, source, name, user=user, cwd=cwd, env=env)


async def import_image(
    config: LauncherConfig, source: Path, name: str, *, user: str | None, cwd: str | None, env: list[str]
) -> NodeImage:
    """Make an image of a directory or tar file under `name`. LauncherError when it cannot be one."""
    defaults = ImageConfig(env=environment(env), user=user, cwd=cwd)
    async with _store(config) as store:
        try:
            return await store.import_path(source, [name], defaults, Progress().built, PUBLIC)
        except ImageSourceError as error:
            raise LauncherError(f"{source} cannot be stored: {error}", fix_of(error)) from error
        except (ImageBuildError, ImageDamagedError, tarfile.TarError, OSError) as error:
            fix = "give a directory or a tar file with a whole root file system, and room for it on the disk"
            raise LauncherError(f"{source} cannot become an image: {error}", fix) from error


async def _import_archive(
    config: LauncherConfig, path: Path, name: str | None, ref: str | None, platform: str
) -> NodeImage:
    async with taking_in(config, str(path)) as (intake, watch, store):
        with store.workplace() as spool:
            source = FileSource(path, name=ref, limit=ImportLimits().size_bytes, spool=spool)
            async with source:
                # What has neither repository nor tag, as layouts have it, names no image elsewhere.
                own = [text for text in ([ref] if ref is not None else source.names()) if {":", "/"} & set(text)]
                names = naming(own if name is None else [name])
                return await intake.take(
                    source, platform_of(platform), kind="file", reference=path.name, names=names, watch=watch
                )


async def list_images(config: LauncherConfig) -> list[Record]:
    async with _store(config) as store:
        return store.records()


async def find_image(config: LauncherConfig, image: str) -> Record:
    """Find an image by name, id or digest. LauncherError."""
    for record in await list_images(config):
        if image in {record.id, record.sum.digest, *_known_as(record)}:
            return record
    raise LauncherError(f"there is no image {image}", "sandlotd image ls lists what there is")


async def remove_image(config: LauncherConfig, image: str) -> str:
    """Remove an image, or one name of several; return what was done. LauncherError while a sandbox uses it."""
    record = await find_image(config, image)
    name = image if image in record.names else f"{image}:latest"
    async with _store(config) as store:
        if name in record.names and len(record.names) > 1:
            await store.unname(name)
            return f"{record.id} is no longer called {name}"
        fix = "end its sandboxes first; GET /v1/sandboxes?image_id=… lists them"
        # A node agent that is down holds no lease, but its sandboxes run on.
        if record.id in images_in_use(config.data_dir / "ledger.db"):
            raise LauncherError(f"{image} is in use by sandboxes", fix)
        try:
            await store.remove(record.id)
        except ImageInUseError as error:
            raise LauncherError(f"{image} is in use by sandboxes", fix) from error
    return f"{record.id} is removed"


def environment(pairs: list[str]) -> dict[str, str]:
    """Read NAME=value pairs."""
    split = [pair.partition("=") for pair in pairs]
    for name, equals, _ in split:
        if not name or not equals:
            raise LauncherError(f"'{name}' is not NAME=value", "write --env NAME=value")
    return {name: value for name, _, value in split}


def _known_as(record: Record) -> set[str]:
    return {*record.names, *(name.removesuffix(":latest") for name in record.names)}


@asynccontextmanager
async def _store(config: LauncherConfig) -> AsyncGenerator[ImageStore]:
    store = store_of(config)
    await store.open()
    yield store
