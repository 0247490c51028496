"""What builds images on this node, put together."""

import asyncio

from sandboxd.builds.cache import StepCache
from sandboxd.builds.engine import Means
from sandboxd.builds.making import Maker
from sandboxd.builds.runners import BuildRunner, SandboxRunner
from sandboxd.config import NodeConfig
from sandboxd.contract.messages import EgressSpec
from sandboxd.images.runners import Runner
from sandboxd.images.store import ImageStore
from sandboxd.images.tree import ImportLimits
from sandboxd.images.uploads import Uploads
from sandboxd.manager.manager import Manager

_MIB = 1024 * 1024


def build_runners(config: NodeConfig, images: ImageStore, manager: Manager, uploads: Uploads) -> dict[str, Runner]:
    """Make the runners of `build` and `sandbox`."""
    limits = ImportLimits(size_bytes=config.image_largest_mib * _MIB)
    means = Means(
        store=images,
        maker=Maker(images, manager.tools.points, limits, uid=config.build_uid),
        house=manager,
        cache=StepCache(config.build_cache_dir),
        turns=asyncio.Semaphore(config.build_steps),
        egress=EgressSpec(mode=config.build_egress),
    )
    return {"build": BuildRunner(means, uploads.path), "sandbox": SandboxRunner(means, manager)}
