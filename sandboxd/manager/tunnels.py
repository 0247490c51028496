"""Tunnels of live sandboxes: opened, changed, closed, looked up. What is open is in each one's spec in the ledger."""

import asyncio
from collections.abc import Callable, Sequence

import structlog

from sandboxd.contract.problems import ProblemError
from sandboxd.contract.tunnels import MAX_TUNNELS, RAW_KINDS, NodeTunnel, PutTunnel, TunnelSpec
from sandboxd.errors import LedgerError, not_ready, stopping
from sandboxd.hooks.tunnels import open_one
from sandboxd.manager.manager import Manager
from sandboxd.network.base import Network, NetworkError
from sandboxd.runner.life import Life

_log = structlog.get_logger(__name__)


class Tunnels:
    """The tunnels of one node. Changes are made one after the other."""

    def __init__(self, manager: Manager, network: Network) -> None:
        self._manager = manager
        self._network = network
        self._changing = asyncio.Lock()
        self._watchers: list[Callable[[], None]] = []

    def watch(self, changed: Callable[[], None]) -> None:
        """Have it called after each change."""
        self._watchers.append(changed)

    def of(self, sandbox_id: str) -> Sequence[NodeTunnel]:
        """Return what is open; nothing of a sandbox that is not here or has ended."""
        runner = self._manager.runners.get(sandbox_id)
        return () if runner is None or runner.life.verdict is not None else runner.life.record.spec.tunnels

    async def put(self, sandbox_id: str, tunnel_id: str, asked: PutTunnel) -> NodeTunnel:
        """Have a tunnel so; whoever it no longer allows has been cut off when this returns.

        Raises what `Manager.ready` raises, `already_exists`, `invalid_request`, `no_capacity`, `disk_full`.
        """
        await self._manager.require_epoch(asked.epoch)
        life = await self._manager.ready(sandbox_id)
        async with self._changing:
            present = life.record.spec.tunnels
            known = next((tunnel for tunnel in present if tunnel.id == tunnel_id), None)
            _check(present, known, tunnel_id, asked.tunnel)
            wanted = NodeTunnel(
                **asked.tunnel.model_dump(),
                id=tunnel_id,
                public_port=known.public_port if known else None,
                created_at_us=known.created_at_us if known else asked.created_at_us,
            )
            if known is not None and wanted == known:
                return known
            tunnel = await self._open(life, wanted)
            _require_live(life)
            others = [each for each in present if each.id != tunnel_id]
            try:
                await self._write(life, [*others, tunnel])
            except ProblemError:
                if known is None and tunnel.kind in RAW_KINDS:
                    await self._network.close_tunnel(tunnel_id)
                raise
            return tunnel

    async def close(self, sandbox_id: str, tunnel_id: str, epoch: int) -> None:
        """Close a tunnel; its connections are dead when this returns. Idempotent."""
        await self._manager.require_epoch(epoch)
        life = await self._manager.ready(sandbox_id)
        async with self._changing:
            present = life.record.spec.tunnels
            left = [tunnel for tunnel in present if tunnel.id != tunnel_id]
            if len(left) == len(present):
                return
            # The ledger first: what a crash leaves in the kernel, the next start drops: the ledger does not name it.
            await self._write(life, left)
            try:
                await self._network.close_tunnel(tunnel_id)
            except NetworkError as error:
                _log.error("tunnel not closed", sandbox_id=sandbox_id, tunnel_id=tunnel_id, error=str(error))
                await self._write(life, present)
                raise _failed() from error

    async def _open(self, life: Life, wanted: NodeTunnel) -> NodeTunnel:
        slot = life.parts.slot
        if slot is None:
            raise not_ready(life.id, life.state)
        try:
            return await open_one(self._network, slot, wanted)
        except NetworkError as error:
            _log.error("tunnel not opened", sandbox_id=life.id, tunnel_id=wanted.id, error=str(error))
            raise _failed() from error

    async def _write(self, life: Life, tunnels: Sequence[NodeTunnel]) -> None:
        before = life.record.spec
        spec = before.model_copy(update={"tunnels": list(tunnels)})
        life.parts.spec = spec
        try:
            await self._manager.tools.ledger.put(life.write(spec=spec))
        except LedgerError as error:
            life.parts.spec = before
            life.write(spec=before)
            raise ProblemError("disk_full", "The node cannot write its ledger.", scope="node") from error
        self._manager.changes.mark(life.id)
        for changed in self._watchers:
            changed()


def _check(present: Sequence[NodeTunnel], known: NodeTunnel | None, tunnel_id: str, asked: TunnelSpec) -> None:
    if known is not None and (known.port, known.kind) != (asked.port, asked.kind):
        raise ProblemError("already_exists", f"Tunnel {tunnel_id} leads elsewhere.", tunnel_id=tunnel_id)
    if known is None:
        same = next((each for each in present if (each.port, each.kind) == (asked.port, asked.kind)), None)
        if same is not None:
            raise ProblemError(
                "already_exists", f"A {asked.kind} tunnel leads to port {asked.port} already.", tunnel_id=same.id
            )
        if len(present) >= MAX_TUNNELS:
            raise ProblemError("invalid_request", f"A sandbox has at most {MAX_TUNNELS} tunnels.", errors=[])


def _require_live(life: Life) -> None:
    """Leave what was opened to the end that has begun: it closes everything that leads to the slot."""
    if life.cause is not None:
        raise stopping(life.id)


def _failed() -> ProblemError:
    return ProblemError("internal", "The node's kernel refused a change of its tunnels; its log has the words.")
