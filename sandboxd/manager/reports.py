"""The node's report: what it is, has and runs."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sandboxd.contract import CONTRACT_VERSION
from sandboxd.contract.messages import NodeReport, RuntimeInfo, SandboxReport
from sandboxd.images.base import Images
from sandboxd.manager.manager import Manager
from sandboxd.runner.life import Life
from sandboxd.runtime.base import Runtime, RuntimeUsage
from sandboxd.trust import TrustStore


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """What stays the same for one start of the agent."""

    node_id: str
    name: str
    version: str
    runtime: RuntimeInfo
    boot_id: str
    incarnation: str
    address: str
    tunnel_host: Callable[[], str] = lambda: "127.0.0.1"
    """How the node's public ports are reached; the host's address may change."""


class Reporter:
    """Makes reports; each has a higher sequence than the one before."""

    def __init__(self, manager: Manager, images: Images, facts: NodeFacts, trust: TrustStore) -> None:
        self._manager = manager
        self._trust = trust
        self._images = images
        self._facts = facts
        self._sequence = 0

    async def full(self) -> NodeReport:
        """Report every sandbox, ended ones that nobody acknowledged included."""
        lives = [runner.life for runner in self._manager.runners.values()]
        metered = [life.handle for life in lives if life.verdict is None and not life.over.is_set()]
        # A thousand meters are some ten thousand small reads: too long for the loop in one go.
        usages = await asyncio.to_thread(_usages, self._manager.tools.runtime, metered)
        # Made only now, in one go, so that no sandbox is missing that the api already knows of.
        lives = [runner.life for runner in self._manager.runners.values()]
        return self._report([_report(life, usages) for life in lives], full=True)

    def partial(self, sandbox_ids: Iterable[str]) -> NodeReport:
        """Report some sandboxes; those that are no longer here are left out."""
        runners = self._manager.runners
        reports = [self._manager.report(runners[each].life) for each in sandbox_ids if each in runners]
        return self._report(reports, full=False)

    def _report(self, sandboxes: list[SandboxReport], *, full: bool) -> NodeReport:
        self._sequence += 1
        facts = self._facts
        return NodeReport(
            node_id=facts.node_id,
            name=facts.name,
            contract_version=CONTRACT_VERSION,
            version=facts.version,
            runtime=facts.runtime,
            epoch=self._manager.epoch,
            boot_id=facts.boot_id,
            sequence=self._sequence,
            incarnation=facts.incarnation,
            full=full,
            address=facts.address,
            tunnel_host=facts.tunnel_host(),
            capacity=self._manager.admission.capacity(),
            used=self._manager.admission.used(),
            images=self._images.held(),
            pool=self._manager.pool.report(),
            sandboxes=sandboxes,
            gateway=self._trust.gateway(),
            trust_revision=self._trust.revision,
        )


def _report(life: Life, usages: dict[str, RuntimeUsage | None]) -> SandboxReport:
    return life.report(usages.get(life.handle) if life.verdict is None else None)


def _usages(runtime: Runtime, handles: list[str]) -> dict[str, RuntimeUsage | None]:
    return {each: runtime.usage(each) for each in handles}
