"""What a build or a sandbox's image needs to be known of before a node is asked: its bases, and where it is."""

from typing import Final

from api.services import image_following
from api.services.identity import Caller
from api.services.image_names import Coming, Pinned, refused, resolve
from api.services.image_requests import ImageSpec
from api.services.platform import Platform
from sandboxd.contract import dockerfile
from sandboxd.contract.dockerfile import DockerfileError
from sandboxd.contract.images import SETTLED, Build, ImageState
from sandboxd.contract.messages import ImageRef
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.validation import invalid_field

_BASE: Final = "base"
_WAIT_SECONDS: Final = 60.0
"""How long a request waits for a base that is being fetched."""


async def bases(platform: Platform, caller: Caller, spec: ImageSpec) -> dict[str, ImageRef]:
    """Return what each name of a build stands for, pinned; nothing for what is no build.

    `invalid_request` names the line of a Dockerfile that cannot be built; a base that has to be fetched first is waited
    for, then `operation_in_progress`.
    """
    if spec.build is None:
        return {}
    found: dict[str, ImageRef] = {}
    for name in names(spec.build):
        found[name] = await _pinned(platform, caller, name)
    return found


def names(build: Build) -> list[str]:
    """Return the names of the images that a build takes. `invalid_request`."""
    if build.dockerfile is None:
        return [build.base or _BASE]
    try:
        return dockerfile.images(dockerfile.parse(build.dockerfile), build.target, build.build_args)
    except DockerfileError as error:
        raise invalid_field("/build/dockerfile", "dockerfile", str(error)) from error


async def _pinned(platform: Platform, caller: Caller, name: str) -> ImageRef:
    found = await resolve(platform, caller, name)
    if isinstance(found, Pinned):
        return found.ref
    return await _fetched(platform, found)


async def _fetched(platform: Platform, coming: Coming) -> ImageRef:
    record = await image_following.wait_until(
        platform, coming.record, lambda row: row.state in SETTLED, seconds=_WAIT_SECONDS
    )
    if record is None or record.state not in SETTLED:
        raise ProblemError(
            "operation_in_progress",
            f"The image {coming.text[:200]!r} is still being fetched.",
            hint="Send the same again in a while.",
            retry_after_seconds=5,
        )
    if record.state == ImageState.FAILED:
        raise refused(coming.text, record)
    return ImageRef(id=record.content_id or "", reference=coming.text, digest=record.digest or "")
