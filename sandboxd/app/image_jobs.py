"""What makes images on this node, put together: one runner for each kind of source."""

import os
import sys
from dataclasses import dataclass
from typing import Final

from sandboxd.app.builds import build_runners
from sandboxd.config import NodeConfig
from sandboxd.images.base import Images
from sandboxd.images.errand_runner import ErrandRules, ErrandRunner
from sandboxd.images.fake import FakeImages
from sandboxd.images.fake_runner import FakeRunner
from sandboxd.images.jobs import JobRules, Jobs
from sandboxd.images.owing import OwingRunner
from sandboxd.images.registries import Registries, make_registries
from sandboxd.images.runners import Runner
from sandboxd.images.store import ImageStore
from sandboxd.images.uploads import Uploads
from sandboxd.manager.manager import Manager

_MIB: Final = 1024 * 1024
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageWork:
    """What the node's calls about images work with."""

    jobs: Jobs
    uploads: Uploads


def image_work(config: NodeConfig, images: Images, manager: Manager) -> ImageWork:
    """Make jobs and uploads. `snapshot` has a runner once there is one for it."""
    uploads = Uploads(config.uploads_dir, reserve_bytes=config.disk_reserve_mib * _MIB)
    runners: dict[str, Runner] = {}
    if isinstance(images, ImageStore):
        errands = ErrandRunner(images, config.image_work_dir, _rules(config), lambda: registries(config), uploads.path)
        made = {"registry": errands, "archive": errands, **build_runners(config, images, manager, uploads)}
        runners |= {kind: OwingRunner(runner, images) for kind, runner in made.items()}
    elif isinstance(images, FakeImages):
        runners["registry"] = FakeRunner(images)
    jobs = Jobs(config.image_jobs_dir, runners, JobRules(at_once=config.image_jobs))
    return ImageWork(jobs=jobs, uploads=uploads)


def registries(config: NodeConfig) -> Registries:
    """Read what the operator said of registries; the file of credentials anew each time. RegistrySettingsError."""
    return make_registries(
        default_registry=config.default_registry,
        library_registries=config.library_registries,
        insecure_registries=config.insecure_registries,
        private_registries=config.private_registries,
        mirrors=config.registry_mirrors,
        auth_file=config.registry_auth_file,
    )


def _rules(config: NodeConfig) -> ErrandRules:
    return ErrandRules(
        first_uid=config.image_first_uid,
        reserve_bytes=config.disk_reserve_mib * _MIB,
        largest_bytes=config.image_largest_mib * _MIB,
        seconds=config.image_seconds,
        # Where this program was found, and nothing of what it was told.
        env={
            "PATH": _PATH,
            "LANG": "C.UTF-8",
            "PYTHONSAFEPATH": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        },
    )
