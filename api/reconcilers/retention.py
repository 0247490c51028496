"""Records that have been kept long enough."""

from typing import Final

from api.services.platform import Platform
from api.store import idempotency, images, sandboxes

_BATCH: Final = 1000
_UPLOADS_KEPT_US: Final = 7 * 86_400 * 1_000_000
"""Where an upload lay is forgotten long after the node has removed it."""


async def purge(platform: Platform) -> None:
    """Remove old records of ended sandboxes and failed images, old idempotency keys, and where uploads lay."""
    now_us = platform.sources.now_us()
    before = now_us - platform.settings.record_days * 86_400 * 1_000_000
    await platform.database.write(sandboxes.purge_any_project, ended_before_us=before, limit=_BATCH)
    await platform.database.write(idempotency.purge_any_project, now_us=now_us)
    await platform.database.write(images.purge_failed_any_project, failed_before_us=before, limit=_BATCH)
    await platform.database.write(images.purge_uploads_any_project, used_before_us=now_us - _UPLOADS_KEPT_US)
