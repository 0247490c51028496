"""What a project's images take in the store: asked of nodes in the background, shown as it was last told."""

from collections.abc import Mapping
from typing import Final

import structlog

from api.services import image_nodes
from api.services.image_board import Sizes
from api.services.node_client import NodeProblemError, NodeUnreachableError
from api.services.platform import Platform

_log = structlog.get_logger()
_OLD_SECONDS: Final = 30.0
_MISSING_SECONDS: Final = 2.0
"""What is just ready goes into the store soon."""
_MOST_PROJECTS: Final = 1000


def known(platform: Platform, project_id: str, content: set[str]) -> Mapping[str, int]:
    """Return the bytes that are each image's alone, by content; has them counted again when that was long ago."""
    board = platform.images
    sizes = board.sizes.get(project_id)
    age = _OLD_SECONDS if sizes is not None and content <= sizes.unique.keys() else _MISSING_SECONDS
    if content and (sizes is None or (not sizes.asking and platform.sources.monotonic() - sizes.at > age)):
        sizes = sizes or Sizes()
        board.sizes.pop(project_id, None)
        board.sizes[project_id] = sizes
        while len(board.sizes) > _MOST_PROJECTS:
            board.sizes.pop(next(iter(board.sizes)))
        sizes.asking = True
        platform.background.start(_ask(platform, project_id, sizes))
    return {} if sizes is None else sizes.unique


async def _ask(platform: Platform, project_id: str, sizes: Sizes) -> None:
    found: dict[str, int] = {}
    try:
        for view in platform.fleet.views():
            if view.ready:
                for stored in await image_nodes.stored(platform, view.id, project_id):
                    # Another node may know of more that shares its content.
                    found[stored.id] = min(stored.unique_bytes, found.get(stored.id, stored.unique_bytes))
    except (NodeProblemError, NodeUnreachableError) as error:
        _log.info("sizes of images are not known", why=str(error))
    else:
        sizes.unique = found
    finally:
        sizes.at, sizes.asking = platform.sources.monotonic(), False
