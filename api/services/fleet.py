"""What nodes have reported, in memory: the base of placement and of what is shown of a running sandbox.

The database holds what was decided; this holds what was seen, and a restart learns it again within one report.
"""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field

from api.services.placement import NodeView
from api.store.tables import Sandbox
from sandboxd.contract.ids import is_id
from sandboxd.contract.messages import Capacity, ImageRef, NodeImage, NodeReport, Resources, SandboxReport
from sandboxd.contract.ready import key_of
from sandboxd.contract.states import DesiredState, SandboxState


class Promises:
    """Resources by sandbox id, with their sums at hand: every create asks for them."""

    def __init__(self) -> None:
        self._by_id: dict[str, Resources] = {}
        self.cpus = 0.0
        self.memory_mib = 0
        self.disk_mib = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, sandbox_id: str, resources: Resources) -> None:
        self.drop(sandbox_id)
        self._by_id[sandbox_id] = resources
        self._count(resources, 1)

    def drop(self, sandbox_id: str) -> None:
        """Forget one, if it is there."""
        if (resources := self._by_id.pop(sandbox_id, None)) is not None:
            self._count(resources, -1)

    def _count(self, resources: Resources, sign: int) -> None:
        self.cpus = round(self.cpus + sign * resources.cpus, 6)
        self.memory_mib += sign * resources.memory_mib
        self.disk_mib += sign * resources.disk_mib


@dataclass(slots=True)
class Member:
    """One node."""

    id: str
    address: str
    epoch: int
    boot_id: str
    incarnation: str
    last_seen: float
    """Monotonic seconds."""
    silent: bool
    report: NodeReport | None = None
    sequence: int = -1
    refusals: int = 0
    promised: Promises = field(default_factory=Promises)
    """What was placed and is not in a report yet."""
    missing: dict[str, int] = field(default_factory=dict[str, int])
    """Sandboxes a full report lacked, with its sequence; a second one makes it certain."""
    made: dict[str, int] = field(default_factory=dict[str, int])
    """Images it has made, with the sequence of the last report before; the next may be older than they are."""
    applied: dict[str, tuple[object, ...]] = field(default_factory=dict[str, tuple[object, ...]])
    """What has already been written down of each sandbox, so that a steady report costs no write."""


@dataclass(frozen=True, slots=True)
class Home:
    """Whose a running sandbox is and where it runs."""

    project_id: str
    node_id: str


class Fleet:
    """All nodes."""

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}
        self.observed: dict[str, SandboxReport] = {}
        self._homes: dict[str, Home] = {}

    def note(self, sandbox: Sandbox) -> None:
        """Take in a record as it has just been written: calls to a running sandbox need no other look at it."""
        if sandbox.state == SandboxState.RUNNING and sandbox.desired_state == DesiredState.RUNNING:
            self._homes[sandbox.id] = Home(sandbox.project_id, sandbox.node_id)
        else:
            self.unsettle(sandbox.id)

    def unsettle(self, sandbox_id: str) -> None:
        """It may not run any more: ask the record."""
        self._homes.pop(sandbox_id, None)

    def address_of(self, project_id: str, sandbox_id: str) -> str | None:
        """Return where a sandbox of the project runs; None where the record must be asked."""
        home = self._homes.get(sandbox_id)
        if home is None or home.project_id != project_id:
            return None
        member = self.members.get(home.node_id)
        return None if member is None or member.silent else member.address

    def report_of(self, node_id: str) -> NodeReport | None:
        """Return what a node last said of itself."""
        member = self.members.get(node_id)
        return None if member is None else member.report

    def views(self) -> list[NodeView]:
        """Return every node with a report, as placement sees it."""
        return [view for member in self.members.values() if (view := _view(member)) is not None]

    def holds(self, node_id: str, content_id: str) -> None:
        """A node has just made an image: it can be started from before a report says so."""
        if (member := self.members.get(node_id)) is not None:
            member.made[content_id] = member.sequence

    def named(self) -> list[NodeImage]:
        """Return the platform's own images: those an operator gave a name."""
        found: dict[str, NodeImage] = {}
        for member in self.members.values():
            for held in member.report.images if member.report else ():
                if held.names:
                    found.setdefault(held.id, held)
        return sorted(found.values(), key=lambda image: image.names)

    def resolve(self, image: str) -> ImageRef | None:
        """Find an image of the platform by id, `name:tag` or `name` (tag `latest`, or none), preferring what most hold.

        What has no name is a project's, and found by its record alone.
        """
        wanted = {image} if is_id("img", image) or ":" in image else {image, f"{image}:latest"}
        holders: dict[str, list[str]] = {}
        for member in self.members.values():
            for held in member.report.images if member.report else ():
                if held.names and (held.id == image or wanted.intersection(held.names)):
                    holders.setdefault(held.id, []).append(held.digest)
        if not holders:
            return None
        image_id = max(sorted(holders), key=lambda candidate: len(holders[candidate]))
        return ImageRef(id=image_id, reference=image, digest=holders[image_id][0])

    @contextmanager
    def promise(self, node_id: str, sandbox_id: str, resources: Resources) -> Generator[None]:
        """Count the sandbox as used on the node while it is being asked, until a report shows it."""
        member = self.members[node_id]
        member.promised.add(sandbox_id, resources)
        try:
            yield
        except BaseException:
            member.promised.drop(sandbox_id)
            raise

    def withdraw(self, node_id: str, sandbox_id: str) -> None:
        """The node refused."""
        if (member := self.members.get(node_id)) is not None:
            member.promised.drop(sandbox_id)
            member.refusals += 1

    def saw(self, reports: Iterable[SandboxReport]) -> None:
        """Remember what was last said of each sandbox."""
        self.observed.update((report.id, report) for report in reports)

    def forget(self, sandbox_id: str, node_id: str) -> None:
        """It has ended."""
        self.observed.pop(sandbox_id, None)
        self.unsettle(sandbox_id)
        if (member := self.members.get(node_id)) is not None:
            member.applied.pop(sandbox_id, None)
            member.missing.pop(sandbox_id, None)
            member.promised.drop(sandbox_id)


def _view(member: Member) -> NodeView | None:
    report = member.report
    if report is None:
        return None
    used = report.used
    promised = member.promised
    return NodeView(
        id=member.id,
        ready=not member.silent,
        capacity=report.capacity,
        used=Capacity(
            cpus=used.cpus + promised.cpus,
            memory_mib=used.memory_mib + promised.memory_mib,
            disk_mib=used.disk_mib + promised.disk_mib,
            sandboxes=used.sandboxes + len(promised),
        ),
        images={image.id for image in report.images}.union(member.made),
        # Which of those placed since would take which of the ready ones is not worth knowing: all count against all.
        ready_sandboxes={key_of(each): each.ready - len(promised) for each in report.pool.ready},
        refusals=member.refusals,
    )
