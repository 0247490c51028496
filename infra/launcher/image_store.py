"""The store behind the images, from the command line: what it has, and what that takes."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from infra.config import LauncherConfig
from infra.launcher.account import LauncherError
from infra.launcher.pull import naming, store_of
from sandboxd.contract.messages import NodeImage
from sandboxd.images.base import ImageDamagedError, ImageMissingError
from sandboxd.images.store import Record
from sandboxd.packs.collect import sizes

FIX = "check SANDLOT_IMAGE_STORE and what it names, then run the same again"


@dataclass(frozen=True, slots=True)
class Sizes:
    """Stored bytes of one image."""

    shared: int
    """Of content that other images here have too."""
    unique: int


async def stored_sizes(config: LauncherConfig) -> tuple[list[Record], dict[str, Sizes]]:
    """List the images of this node, and by digest what those that are in the store take there."""
    store = store_of(config)
    await store.open()
    try:
        manifests = await store.manifests()
    except ImageDamagedError:
        return store.records(), {}
    found = await asyncio.to_thread(lambda: sizes(manifests.values()))
    return store.records(), {digest: Sizes(*pair) for digest, pair in found.items()}


async def fetch_image(config: LauncherConfig, digest: str, names: Sequence[str]) -> NodeImage:
    """Know an image of the store under these names. LauncherError."""
    store = store_of(config)
    await store.open()
    try:
        return await store.fetch(digest, naming(names))
    except ImageMissingError as error:
        raise LauncherError(
            f"{digest} is not in the store", "sandlotd image ls on a node that has it names it"
        ) from error
    except ImageDamagedError as error:
        raise LauncherError(f"{digest} cannot be had: {error}", FIX) from error


async def keep_image(config: LauncherConfig, record: Record) -> None:
    """Have an image of this node in the store. LauncherError."""
    store = store_of(config)
    await store.open()
    try:
        await store.keep(record.id)
    except Exception as error:
        raise LauncherError(f"{record.id} cannot be stored: {error}", FIX) from error
