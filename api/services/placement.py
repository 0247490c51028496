"""Which node a sandbox goes to, and why none. Pure: what nodes reported goes in, a choice comes out.

Best of a few at random, not the best of all: many creates at once must not all land on the node that looked emptiest
in the last report.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from sandboxd.contract.messages import Capacity, Resources
from sandboxd.contract.ready import ReadyKey, ready_key

CANDIDATES: Final = 3
REFUSAL_PENALTY: Final = 0.25
READY_BONUS: Final = 0.5
"""A start in milliseconds is worth this much of a node's emptiness."""

Draw = Callable[[int], int]
"""Returns a number from 0 up to, not including, its argument; `random.randrange` outside tests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """A node as placement sees it."""

    id: str
    ready: bool
    capacity: Capacity
    used: Capacity
    """Reported, plus what was promised since."""
    images: Collection[str]
    ready_sandboxes: Mapping[ReadyKey, int] = field(default_factory=dict[ReadyKey, int])
    """What it had ready by its last report, less what was placed on it since."""
    refusals: int = 0
    """Refusals since its last report."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The node to ask."""

    node_id: str


@dataclass(frozen=True, slots=True)
class NoChoice:
    """Why there is none: `impossible` for ever, `image` on no node, `full` or `silent` for now."""

    why: Literal["impossible", "image", "full", "silent"]
    detail: str
    limit: dict[str, float] | None = None


def choose(
    nodes: Sequence[NodeView], resources: Resources, image_id: str, *, tried: Collection[str], draw: Draw
) -> Choice | NoChoice:
    """Pick a node that has the image and room, none of `tried`."""
    if not nodes:
        return NoChoice("silent", "No node has reported yet.")
    if limit := _impossible(nodes, resources):
        asked = ", ".join(f"{name} {getattr(resources, name):g}" for name in limit)
        most = ", ".join(f"{name} {value:g}" for name, value in limit.items())
        return NoChoice("impossible", f"Asked for {asked}; the largest node has {most}.", limit)
    holders = [node for node in nodes if image_id in node.images]
    if not holders:
        return NoChoice("image", "No node has the image.")
    ready = [node for node in holders if node.ready and node.id not in tried]
    if not ready:
        return NoChoice("full" if tried else "silent", "Every node that could is full, or silent.")
    fitting = [node for node in ready if _fits(node, resources)]
    if not fitting:
        return NoChoice("full", "Every node that could is full now.")
    key = ready_key(image_id, resources)
    # Of nodes that have a ready one too a few are looked at, and of all others: it is liked, not required.
    quick = [node for node in fitting if node.ready_sandboxes.get(key, 0) > 0]
    slow = [node for node in fitting if node.ready_sandboxes.get(key, 0) <= 0]
    few = [*_few(quick, draw), *_few(slow, draw)]
    return Choice(min(few, key=lambda node: _score(node, resources, key)).id)


def _amounts(resources: Resources) -> dict[str, float]:
    return {"cpus": resources.cpus, "memory_mib": resources.memory_mib, "disk_mib": resources.disk_mib}


def _impossible(nodes: Sequence[NodeView], resources: Resources) -> dict[str, float]:
    """Return the largest capacity in each dimension that no node could ever provide."""
    if any(all(getattr(node.capacity, name) >= n for name, n in _amounts(resources).items()) for node in nodes):
        return {}
    most = {name: float(max(getattr(node.capacity, name) for node in nodes)) for name in _amounts(resources)}
    return {name: value for name, value in most.items() if _amounts(resources)[name] > value} or most


def _fits(node: NodeView, resources: Resources) -> bool:
    if node.used.sandboxes + 1 > node.capacity.sandboxes:
        return False
    return all(getattr(node.used, name) + n <= getattr(node.capacity, name) for name, n in _amounts(resources).items())


def _few(nodes: Sequence[NodeView], draw: Draw) -> list[NodeView]:
    """Draw up to CANDIDATES of them."""
    left = list(nodes)
    return [left.pop(draw(len(left))) for _ in range(min(CANDIDATES, len(left)))]


def _score(node: NodeView, resources: Resources, key: ReadyKey) -> float:
    """Lower is better: the fullest dimension after this sandbox, a malus for nodes that have just refused, a bonus for
    those that have one ready.
    """
    fullest = max(
        (getattr(node.used, name) + n) / max(getattr(node.capacity, name), 1e-9)
        for name, n in _amounts(resources).items()
    )
    bonus = READY_BONUS if node.ready_sandboxes.get(key, 0) > 0 else 0.0
    return fullest + REFUSAL_PENALTY * node.refusals - bonus
