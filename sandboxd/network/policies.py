"""The policies of a node's slots in the kernel: applied, changed under running connections, closed when that fails.

Everything here runs in one thread of the router namespace, so that what is known of a slot changes as the kernel does.
"""

import itertools
import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Final

import structlog

from netpolicy.elements import (
    BY_POLICY,
    LEARNED,
    LEARNED_RANGES,
    LIVE,
    MARKS,
    SOURCES,
    Change,
    Element,
    Opening,
    change_between,
    opening_element,
    opening_of,
    policy_elements,
    policy_key,
)
from netpolicy.firewall import Firewall, FirewallError
from netpolicy.flows import Flow, Flows, FlowsError
from netpolicy.model import Model, Outcome, protocol_name
from netpolicy.platform import PLATFORM, Platform
from netpolicy.policy import BLOCKED, Policy
from netpolicy.router_side import GENERATION_MASK, SLOT_PREFIX, slot_mark
from netpolicy.verdict import openings
from sandboxd.network.base import NetworkError, Slot

MOST_LEARNED: Final = 1024
"""Addresses and ports of one slot that names may have led to at once."""

_SWEPT_AT_ONCE: Final = 1
"""Each costs the kernel some twenty milliseconds where there are fifty thousand, and whoever comes next waits."""
_SWEEP_PAUSE: Final = 10
"""How many times as long as a removal has taken, others have the thread and the kernel's tables to themselves."""
_SWEPT_WITHOUT_PAUSE: Final = 2000
"""What is out of use costs memory, and what comes next a little more: from so many on it goes as fast as it can."""
_KEPT_SECONDS: Final = 3600
"""How long a connection may outlive what its name has led to and still be judged by that name."""
_GRACE_SECONDS: Final = 30
_TCP: Final = 6

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Known:
    """What one slot has in the kernel."""

    generation: int = 0
    policy: Policy | None = None
    """None: not known since the agent came back."""
    elements: set[Element] = field(default_factory=set[Element])
    stale: set[Element] = field(default_factory=set[Element])
    """Of older policies, out of use."""
    unsettled: bool = False
    """Connections that began while the policy was changed may still be tracked, though nothing of them is carried."""
    learned: dict[Element, dict[str, float]] = field(default_factory=dict[Element, dict[str, float]])
    """The names that led there, and until when (boot time). One that is over is kept for connections that it began."""

    def see(self, there: Iterable[Element]) -> None:
        """Take what the kernel has for what is known, and forget why it is there."""
        elements = [element for element in there if element.set_name != SOURCES]
        self.learned = {element: {} for element in elements if element.set_name in (LEARNED, LEARNED_RANGES)}
        mine = {element for element in elements if element not in self.learned}
        marks = {policy_key(element.data) for element in mine if element.set_name == MARKS and element.data is not None}
        self.stale = {element for element in mine if element.set_name in BY_POLICY and element.key[:4] not in marks}
        self.elements = mine - self.stale
        self.policy = None


class SlotPolicies:
    """Elements and connections of all slots. `clock` is boot time."""

    def __init__(self, firewall: Firewall, flows: Flows, clock: Callable[[], float]) -> None:
        self._firewall = firewall
        self._flows = flows
        self._clock = clock
        self._known: dict[int, _Known] = {}
        self.platform: Platform = PLATFORM

    def take_over(self, slots: Collection[Slot]) -> None:
        """Learn what the kernel holds of the slots that are kept, and remove what it holds of any other."""
        found = self._firewall.slot_elements()
        for slot in slots:
            mine = found.pop(slot.interface, set())
            known = _Known(generation=_generation(mine))
            known.see(mine)
            self._known[slot.index] = known
        for interface, elements in found.items():
            # Its number goes on from there: what is swept later must never be met under it again.
            known = _Known(generation=_generation(elements))
            known.stale = {element for element in elements if element.set_name in BY_POLICY}
            self._firewall.apply(Change(remove=tuple(elements - known.stale)))
            self._known[_index(interface)] = known

    def apply(self, slot: Slot, policy: Policy) -> int:
        """Make a policy true; returns how many connections it has ended. NetworkError: then nothing is reached."""
        known = self._known.setdefault(slot.index, _Known())
        same = set(policy_elements(slot.index, slot.interface, known.generation, policy))
        if same == known.elements and (known.policy or policy) == policy:
            known.policy = policy
            return 0
        try:
            if known.policy == BLOCKED and not known.unsettled:
                # It has begun nothing: what an earlier policy let it begin was ended when this one was applied. To look
                # through all of the node's connections would be most of what a claim takes.
                self._change(slot, known, policy)
                return 0
            # Listed before, while they are as they were: from the change on the kernel carries nothing that is
            # forbidden, either way, and resets what sends something.
            flows = self._flows.of_slot(slot.index)
            self._change(slot, known, policy)
            known.unsettled = True
            return self._end_forbidden(slot, known, flows)
        except (FirewallError, FlowsError) as error:
            _log.error("policy_not_applied", slot=slot.index, error=str(error))
            self.close(slot)
            raise NetworkError(f"slot {slot.index}'s policy cannot be applied, so it is closed: {error}") from error

    def close(self, slot: Slot, *, of_the_node: bool = False) -> None:
        """Let a slot reach nothing, and end its connections; with `of_the_node`, those to it as well. NetworkError."""
        known = self._known.setdefault(slot.index, _Known())
        try:
            try:
                self._change(slot, known, BLOCKED)
            except FirewallError:
                # What is known may be wrong: the kernel says what there is.
                self._look_again(slot, known)
                self._change(slot, known, BLOCKED)
            known.unsettled = True
            self._flows.forget(slot.index, of_the_node=of_the_node)
            known.unsettled = False
        except (FirewallError, FlowsError) as error:
            raise NetworkError(f"slot {slot.index} cannot be closed: {error}") from error

    def sweep(self) -> float | None:
        """Remove a little of what is out of use; returns in how many seconds to go on. None: there is no more."""
        for index, known in self._known.items():
            if known.unsettled:
                self._settle(index, known)
                return 0
            if known.stale:
                some = tuple(itertools.islice(known.stale, _SWEPT_AT_ONCE))
                begun = self._clock()
                try:
                    self._firewall.apply(Change(remove=some))
                except FirewallError as error:
                    _log.warning("policy_not_swept", slot=index, error=str(error))
                    return None
                known.stale.difference_update(some)
                left = sum(len(other.stale) for other in self._known.values())
                return 0 if left > _SWEPT_WITHOUT_PAUSE else _SWEEP_PAUSE * (self._clock() - begun)
        return None

    def _settle(self, index: int, known: _Known) -> None:
        known.unsettled = False
        current = slot_mark(index) | known.generation
        try:
            older = [flow for flow in self._flows.of_slot(index) if flow.mark != current]
            if known.policy is not None:
                model = Model((*known.elements, *known.learned), self.platform)
                self._flows.end(flow for flow in older if not _may_go_on(flow, model))
        except FlowsError as error:
            _log.warning("connections_not_settled", slot=index, error=str(error))

    def forget(self, slot: Slot) -> None:
        """Remove whatever a slot has that is no more."""
        known = self._known.get(slot.index)
        if known is None:
            return
        later = {element for element in known.elements if element.set_name in BY_POLICY}
        try:
            self._firewall.apply(Change(remove=(*(known.elements - later), *known.learned)))
        except FirewallError as error:
            raise NetworkError(f"slot {slot.index}'s elements cannot be removed: {error}") from error
        known.stale |= later
        known.elements, known.learned, known.policy = set(), {}, None

    def learn(self, slot: Slot, name: str, addresses: Iterable[IPv4Address], seconds: int) -> None:
        """Open what the slot's policy opens at addresses that a name has led to. NetworkError: nothing is open."""
        known = self._known.get(slot.index)
        if known is None or known.policy is None:
            raise NetworkError(f"slot {slot.index} has no policy")
        now = self._clock()
        opened = [
            opening_element(slot.interface, Opening(protocol, address, first, last))
            for address in addresses
            if not self.platform.is_denied(address) and address not in self.platform.node_addresses
            for protocol, first, last in openings(known.policy, name)
        ]
        over = [element for element, names in known.learned.items() if _until(names) < now - _KEPT_SECONDS]
        over = [element for element in over if element not in opened]
        if len(known.learned.keys() | set(opened)) - len(over) > MOST_LEARNED:
            raise NetworkError(f"slot {slot.index}'s names have led to more than {MOST_LEARNED} addresses")
        until = {element: max(now + seconds, _until(known.learned.get(element, {}))) for element in opened}
        timed = tuple(_timed(element, until[element] - now) for element in opened)
        try:
            self._firewall.apply(Change(remove=(*over, *opened), add=timed))
        except FirewallError as error:
            raise NetworkError(f"addresses of {name} cannot be opened: {error}") from error
        for element in over:
            del known.learned[element]
        for element in opened:
            known.learned.setdefault(element, {})[name] = now + seconds

    def _change(self, slot: Slot, known: _Known, policy: Policy) -> None:
        generation = (known.generation + 1) & GENERATION_MASK
        wanted = policy_elements(slot.index, slot.interface, generation, policy)
        lost = [element for element, names in known.learned.items() if not _still_open(policy, names, element)]
        over = [element for element, names in known.learned.items() if _until(names) <= self._clock()]
        # A connection outlives what its name has led to; here it is judged once more.
        again = [element for element in over if element not in lost]
        change = change_between(known.elements, wanted)
        # From here on the number is taken, whatever comes: no connection may bear it from another policy.
        known.generation = generation
        later = {element for element in change.remove if element.set_name in BY_POLICY}
        remove = (*(element for element in change.remove if element not in later), *lost, *again)
        add = (*change.add, *(_timed(one, _GRACE_SECONDS) for one in again))
        self._firewall.apply(Change(remove=remove, add=add))
        known.stale = (known.stale | later) - set(wanted)
        known.elements, known.policy = set(wanted), policy
        for element in lost:
            del known.learned[element]

    def _look_again(self, slot: Slot, known: _Known) -> None:
        mine = self._firewall.slot_elements().get(slot.interface, set())
        known.see(mine)

    def _end_forbidden(self, slot: Slot, known: _Known, flows: Iterable[Flow]) -> int:
        """End what of these the policy in force forbids: the kernel refuses it already, and so will a later policy.

        Returns how many of them somebody misses.
        """
        model = Model((*known.elements, *known.learned), self.platform)
        allowed: list[Flow] = []
        forbidden: list[Flow] = []
        for flow in flows:
            (allowed if _may_go_on(flow, model) else forbidden).append(flow)
        self._flows.end(forbidden)
        self._flows.mark(allowed, slot_mark(slot.index) | known.generation)
        return sum(map(_counts, forbidden))


def _counts(flow: Flow) -> bool:
    """Whether its end is one that somebody notices: a question to the resolver is asked anew."""
    return flow.alive and not (flow.redirected and flow.protocol != _TCP)


def _may_go_on(flow: Flow, model: Model) -> bool:
    if flow.redirected:
        # Whose name is not allowed any more is closed by the proxy; a question to the resolver is asked anew.
        return flow.protocol == _TCP and model.serves(new=False)
    name = protocol_name(flow.protocol)
    outcome = model.later_packet(name, flow.destination, 0 if name == "icmp" else flow.destination_port)
    return outcome is Outcome.ACCEPT


def _still_open(policy: Policy, names: Iterable[str], element: Element) -> bool:
    """Whether a policy opens at one of the names' addresses what an earlier one has opened."""
    opening = opening_of(element)
    return any(
        protocol == opening.protocol and least <= opening.first and opening.last <= most
        for name in names
        for protocol, least, most in openings(policy, name)
    )


def _until(names: dict[str, float]) -> float:
    return max(names.values(), default=0.0)


def _timed(element: Element, seconds: float) -> Element:
    return Element(element.set_name, element.key, last=element.last, timeout_ms=max(1, int(seconds * 1000)))


def _generation(elements: Iterable[Element]) -> int:
    """Return the highest generation that the kernel still knows of."""
    marks = [element.data for element in elements if element.set_name == MARKS and element.data is not None]
    marks += [element.key[16:20] for element in elements if element.set_name == LIVE]
    numbers = [int.from_bytes(mark, sys.byteorder) for mark in marks]
    numbers += [int.from_bytes(element.key[:4], "big") for element in elements if element.set_name in BY_POLICY]
    return max((number & GENERATION_MASK for number in numbers), default=0)


def _index(interface: str) -> int:
    """Return a slot's index; of a name that is none of ours, one that no slot has."""
    number = interface.removeprefix(SLOT_PREFIX)
    return int(number) if number.isdecimal() else -1
