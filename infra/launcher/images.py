"""Images from the command line: the node's own store, opened beside a running node."""

import tarfile
from pathlib import Path

from infra.config import LauncherConfig
from infra.launcher.account import LauncherError
from sandboxd.contract.messages import NodeImage
from sandboxd.images.base import ImageConfig, ImageDamagedError
from sandboxd.images.erofs import ImageBuildError
from sandboxd.images.store import ImageStore


async def import_image(
    config: LauncherConfig, source: Path, name: str, *, user: str | None, cwd: str | None, env: list[str]
) -> NodeImage:
    """Make an image of a directory or tar file under `name`. LauncherError when it cannot be one."""
    defaults = ImageConfig(env=environment(env), user=user, cwd=cwd)
    store = ImageStore(config.images_dir)
    await store.open()
    try:
        return await store.import_path(source, [name], defaults)
    except (ImageBuildError, ImageDamagedError, tarfile.TarError, OSError) as error:
        fix = "give a directory or a tar file with a whole root file system, and room for it on the disk"
        raise LauncherError(f"{source} cannot become an image: {error}", fix) from error


async def list_images(config: LauncherConfig) -> list[NodeImage]:
    store = ImageStore(config.images_dir)
    await store.open()
    return store.held()


def environment(pairs: list[str]) -> dict[str, str]:
    """Read NAME=value pairs."""
    split = [pair.partition("=") for pair in pairs]
    for name, equals, _ in split:
        if not name or not equals:
            raise LauncherError(f"'{name}' is not NAME=value", "write --env NAME=value")
    return {name: value for name, _, value in split}
