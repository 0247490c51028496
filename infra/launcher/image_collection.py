"""What nobody needs any more, from the command line: found, and done away with."""

import asyncio
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from infra.config import LauncherConfig
from infra.launcher.account import LauncherError
from infra.launcher.image_roots import Forgotten, forget, roots_of_api
from infra.launcher.image_store import FIX, Sizes
from infra.launcher.pull import node_config, store_of
from sandboxd.images.opening import blobs
from sandboxd.packs.blobs import BlobError, BlobMissingError, Blobs
from sandboxd.packs.collect import Collector, Plan, StaleError, sizes
from sandboxd.packs.keys import NODES, ManifestName
from sandboxd.packs.manifest import MOST_BYTES, Manifest, parse
from sandboxd.packs.pack import DamagedError


@dataclass(frozen=True, slots=True)
class Collected:
    """What was done to the store, or would be."""

    plan: Plan
    forgotten: Forgotten
    sizes: dict[str, Sizes]
    """Of the images that go, by digest: what they share with others of the store, and what is theirs alone."""


async def collect(config: LauncherConfig, keep: Sequence[str], *, grace_hours: float, dry_run: bool) -> Collected:
    """Look for what nobody needs, and unless it is a rehearsal, condemn it, or delete what was condemned long enough.

    LauncherError.
    """
    node = node_config().model_copy(update={"data_dir": config.data_dir})
    store = store_of(config)
    await store.open()
    seconds = grace_hours * 3600
    # What is needed is read after what nodes say: a root that appears meanwhile is in one of the two.
    forgotten = await forget(
        config, store, roots_of_api(config), node.build_cache_dir, seconds=seconds, dry_run=dry_run
    )
    await store.republish()
    roots = roots_of_api(config)
    wanted = [*keep, *(roots.digests if roots is not None else ())]
    collector = Collector(blobs(node), seconds)

    def work() -> tuple[Plan, dict[str, Sizes]]:
        if roots is not None and not dry_run:
            # For whoever collects the same store from another box.
            collector.blobs.put(f"{NODES}/api-{config.instance}", json.dumps(sorted(map(_hex, wanted))).encode())
        plan = collector.look(wanted)
        counted = _sizes_of(collector.blobs, plan)
        if not dry_run:
            collector.carry_out(plan)
        return plan, counted

    try:
        plan, counted = await asyncio.to_thread(work)
    except (BlobError, DamagedError, StaleError) as error:
        raise LauncherError(f"the store cannot be collected: {error}", FIX) from error
    return Collected(plan, forgotten, counted)


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")


def _sizes_of(of: Blobs, plan: Plan) -> dict[str, Sizes]:
    """Count what goes, beside all that is there. BlobError, DamagedError."""
    going = {name.image for name in (*plan.delete, *plan.condemn) if isinstance(name, ManifestName)}
    if not going:
        return {}
    names = [name for name in plan.sizes if isinstance(name, ManifestName)]
    manifests: list[Manifest] = []
    for name in names:
        with suppress(BlobMissingError):
            manifests.append(parse(of.get(name.key, MOST_BYTES), name))
    counted = sizes(manifests)
    return {digest: Sizes(*pair) for digest, pair in counted.items() if _hex(digest) in going}
