"""What is done for all sandboxes together, every few seconds: meters, disk, leftovers, the network's host side."""

import asyncio
from typing import Final

import structlog

from sandboxd.clock import Clock
from sandboxd.contract.reasons import SandboxReason
from sandboxd.manager.host import Host
from sandboxd.manager.manager import Manager
from sandboxd.network.base import Network
from sandboxd.runner.life import Life

_log = structlog.get_logger(__name__)

_STALE_SECONDS: Final = 4.0
"""How far the ledger may lag behind a sandbox's last use."""


class Upkeep:
    """One round at a time."""

    def __init__(self, network: Network, host: Host, *, disk_watermark_mib: int) -> None:
        self._network = network
        self._host = host
        self._watermark_mib = disk_watermark_mib
        self._victim: Life | None = None
        self._carried: dict[str, tuple[int, int]] = {}

    async def run(self, manager: Manager, clock: Clock, every_seconds: float) -> None:
        """Go round for ever. A round that fails is logged, and the next one tries again."""
        due = clock.boottime()
        while True:
            due = max(due + every_seconds, clock.boottime())
            await clock.sleep_until(due)
            try:
                await self.once(manager)
            except Exception:  # noqa: BLE001 - the next round tries again
                _log.exception("upkeep failed")

    async def once(self, manager: Manager) -> None:
        """Go round once."""
        await self._note_traffic(manager)
        self._note_activity(manager)
        await self._make_room(manager)
        await self._clear_leftovers(manager)
        await self._network.repair()

    async def _note_traffic(self, manager: Manager) -> None:
        """Count as used whatever had traffic in a raw tunnel since the last round."""
        before, self._carried = self._carried, await self._network.tunnel_bytes()
        moved = {tunnel_id for tunnel_id, count in self._carried.items() if count != before.get(tunnel_id, (0, 0))}
        if not moved:
            return
        for runner in manager.runners.values():
            if any(tunnel.id in moved for tunnel in runner.life.record.spec.tunnels):
                runner.life.activity.happened(manager.tools.clock.boottime())

    def _note_activity(self, manager: Manager) -> None:
        """Write down when sandboxes were last used, where a restart would need it."""
        moved: dict[str, float] = {}
        for sandbox_id, runner in manager.runners.items():
            life = runner.life
            if life.over.is_set() or life.record.spec.idle_timeout_seconds is None:
                continue
            at = life.activity.last_active()
            if at - life.record.last_active >= _STALE_SECONDS:
                life.write(last_active=at)
                moved[sandbox_id] = at
        manager.tools.ledger.touch_soon(moved)

    async def _make_room(self, manager: Manager) -> None:
        """Below the watermark, stop the sandbox that wrote most: one at a time, until it is gone."""
        if self._victim is not None and not self._victim.over.is_set():
            return
        self._victim = None
        free = self._host.disk_free_mib()
        if free >= self._watermark_mib:
            return
        alive = {each: runner for each, runner in manager.runners.items() if runner.life.cause is None}
        written = await asyncio.to_thread(self._host.written_mib)
        by_id = {each: written.get(runner.life.handle, 0) for each, runner in alive.items()}
        most = max(by_id, key=lambda each: by_id[each], default=None)
        if most is None:
            _log.error("disk below its watermark, and no sandbox to stop", free_mib=free)
            return
        self._victim = alive[most].life
        message = f"The node had {free} MiB of disk left, and it had written most: {by_id[most]} MiB."
        _log.warning("disk below its watermark", free_mib=free, sandbox_id=most, written_mib=by_id[most])
        alive[most].stop(SandboxReason.NODE_DISK_FULL, grace_seconds=0, message=message)

    async def _clear_leftovers(self, manager: Manager) -> None:
        for sandbox_id, runner in list(manager.leftovers.items()):
            if await runner.undo_leftovers():
                manager.leftovers.pop(sandbox_id, None)
                manager.admission.release(sandbox_id)
                _log.info("leftovers removed", sandbox_id=sandbox_id)
        await manager.pool.clear_leftovers()
