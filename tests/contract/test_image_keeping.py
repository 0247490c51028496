"""What images take, as one project may know; and what a node forgets that nobody needs."""

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path

from test_filling import Node, content

from image_kit import files_tar
from infra.config import LauncherConfig
from infra.launcher.image_roots import ImageRoots, forget
from packs_kit import MemoryBlobs
from sandboxd.images.base import ImageConfig
from sandboxd.images.stored_sizes import StoredSizes

MINE, THEIRS = "prj" + "a" * 20, "prj" + "b" * 20


async def add(node: Node, name: str, domain: str, *seeds: int) -> str:
    source = node.home / f"{name}.tar"
    files = {f"data{seed}": content(seed, 400_000) for seed in seeds}
    source.write_bytes(files_tar(files | {"name": name.encode()}))
    return (await node.images.import_path(source, (), ImageConfig(), domain=domain)).id


async def sizes(counting: StoredSizes, project: str) -> dict[str, tuple[bool, bool]]:
    """For each image, whether it shares much, and has much of its own."""
    much = 200_000
    return {row.id: (row.shared_bytes > much, row.unique_bytes > much) for row in await counting.of(project)}


async def test_sizes_are_counted_as_one_project_may_know(tmp_path: Path) -> None:
    node = Node(tmp_path / "one", MemoryBlobs())
    await node.images.open()
    public = await add(node, "public", "public", 1)
    mine = await add(node, "mine", MINE, 1, 2)
    counting = StoredSizes(node.images)
    assert await sizes(counting, MINE) == {public: (True, False), mine: (True, True)}
    assert await sizes(counting, THEIRS) == {public: (False, True)}
    # The same content of somebody else's changes nothing: not even by the public part of it.
    theirs = await add(node, "theirs", THEIRS, 1, 2)
    assert await sizes(counting, MINE) == {public: (True, False), mine: (True, True)}
    assert theirs in await sizes(counting, THEIRS)
    newer = await add(node, "newer", MINE, 2)
    assert await sizes(counting, MINE) == {public: (True, False), mine: (True, False), newer: (True, False)}
    await node.images.remove(newer)
    assert await sizes(counting, MINE) == {public: (True, False), mine: (True, True)}


async def test_a_node_forgets_what_nobody_has(tmp_path: Path) -> None:
    node = Node(tmp_path / "one", MemoryBlobs())
    await node.images.open()
    named = await node.add("named", seed=1)
    used, wanted, cached, gone = [await add(node, f"i{seed}", MINE, seed) for seed in range(2, 6)]
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "key").write_text(cached)
    digest = next(record.sum.digest for record in node.images.records() if record.id == wanted)
    roots = ImageRoots(frozenset({digest}), unsettled=False)
    config = LauncherConfig(data_dir=tmp_path)

    async def forgotten(of: ImageRoots | None = roots, *, seconds: float = 0, dry_run: bool = False) -> Iterable[str]:
        done = await forget(config, node.images, of, cache, seconds=seconds, dry_run=dry_run)
        return [record.id for record in done.records]

    assert await forgotten(None) == []
    assert await forgotten(ImageRoots(roots.digests, unsettled=True)) == []
    assert await forgotten(seconds=3600) == []
    async with node.images.lease(used):
        assert sorted(await forgotten(dry_run=True)) == sorted([used, gone])
        assert await forgotten() == [gone]
    assert {image.id for image in node.images.held()} == {named, used, wanted, cached}
    await asyncio.to_thread(os.utime, cache / "key", (0, 0))
    assert sorted(await forgotten()) == sorted([used, cached])
    assert {image.id for image in node.images.held()} == {named, wanted}
