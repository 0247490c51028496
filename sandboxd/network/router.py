"""The router namespace: its own settings and table, and the slots on it.

Everything here runs in the router namespace's thread, which alone decides which index is free.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import structlog

from netpolicy.compile import drop_table, router_table
from netpolicy.elements import Change, Element, node_address_element, source_element
from netpolicy.firewall import FirewallError, load_table
from netpolicy.platform import Platform
from netpolicy.tunnels import RawTunnel, router_part
from sandboxd.network import slots
from sandboxd.network.base import NetworkError, Slot
from sandboxd.network.failures import refusals
from sandboxd.network.links import Links
from sandboxd.network.netns import disable_ipv6, write_sysctl
from sandboxd.network.slots import SlotPlan

_SYSCTLS = {
    "ipv4/ip_forward": "1",
    "ipv4/conf/all/rp_filter": "1",
    "ipv4/conf/default/rp_filter": "1",
    "ipv4/conf/all/accept_redirects": "0",
    "ipv4/conf/all/send_redirects": "0",
    # Every neighbour is permanent: the router answers no ARP question and asks none.
    "ipv4/conf/all/arp_ignore": "8",
    # A refusal is an ICMP error to the one who is refused; held back, it would look like silence.
    "ipv4/icmp_ratelimit": "0",
}
_SYSCTLS_OF_CONNTRACK = {
    # A packet in the middle of a connection that was ended must not begin it anew.
    "netfilter/nf_conntrack_tcp_loose": "0",
}

_log = structlog.get_logger(__name__)


class Router:
    """The slots of one router namespace. `apply` changes elements of its table, `forget` removes a slot's policy."""

    def __init__(self, plan: SlotPlan, apply: Callable[[Change], None], forget: Callable[[Slot], None]) -> None:
        self._plan = plan
        self._apply = apply
        self._forget = forget
        self._links = Links()
        self._used: set[int] = set()
        self._next = 0
        self.ready: deque[Slot] = deque()
        """Slots that nobody has; the loop's thread takes from it too."""

    def close(self) -> None:
        self._links.close()

    def set_up(
        self,
        in_use: Collection[int],
        platform: Platform,
        tunnels: Callable[[list[Slot]], list[RawTunnel]] = lambda _: [],
    ) -> set[int]:
        """Make the table true, remove all slots but those in use; return those of them that exist.

        The rules are replaced in one transaction, and elements stay, so nobody's packets meet none. `tunnels` says
        which ones lead to the slots that exist; the table has no others.
        """
        disable_ipv6()
        for name, value in _SYSCTLS.items():
            write_sysctl(name, value)
        existing = slots.existing(self._plan.netns_dir, self._links)
        kept = {index for index in existing if index in in_use and index < self._plan.count}
        kept_slots = [self._plan.slot(index) for index in sorted(kept)]
        text = router_table(platform, tunnels=router_part(tunnels(kept_slots)))
        with refusals("the router's table cannot be loaded"):
            try:
                # With nobody left, all elements go with the table: one by one they would take the kernel long.
                load_table(text if kept else drop_table() + text)
            except FirewallError as error:
                # Another release's sets: closed until each policy is applied again, which comes next.
                _log.warning("router_table_replaced", error=str(error))
                load_table(drop_table() + text)
        for name, value in _SYSCTLS_OF_CONNTRACK.items():
            write_sysctl(name, value)
        self._used = kept
        sources = [self._source(self._plan.slot(index)) for index in sorted(kept)]
        self._apply(Change(add=tuple(sources)))
        for index in sorted(existing - kept):
            slots.remove(self._plan.slot(index), self._links)
        return kept

    def make_ready(self) -> None:
        """Make a slot and put it with the ready ones; NetworkError, and then nothing of it is left."""
        slot = self._plan.slot(self._free_index())
        slots.make(slot, self._links)
        try:
            self._apply(Change(add=(self._source(slot),)))
        except NetworkError:
            self._remove_quietly(slot)
            raise
        self._used.add(slot.index)
        self.ready.append(slot)

    def check(self, index: int) -> Slot:
        """Return a slot in use as it is; NetworkError if its part outside the sandbox is not whole."""
        slot = self._plan.slot(index)
        slots.verify_outside(slot, self._links)
        link = self._links.find(slot.interface)
        return replace(slot, mtu=link.mtu) if link is not None else slot

    def cut(self, slot: Slot) -> None:
        """Take a slot's link down: what can be closed by no rule is closed so."""
        with refusals(f"slot {slot.index} cannot be cut off"):
            self._links.set_down(slot.interface)

    def give_back(self, slot: Slot, *, keep: bool) -> None:
        """Take a slot whose sandbox is gone: ready again if it is wanted and provably clean, else removed."""
        if keep and slot.mtu == self._plan.mtu:
            try:
                slots.recycle(slot, self._links)
            except NetworkError as error:
                _log.warning("slot_not_reusable", slot=slot.index, error=str(error))
            else:
                self.ready.append(slot)
                return
        slots.remove(slot, self._links)
        self._used.discard(slot.index)
        self._apply(Change(remove=(self._source(slot),)))
        self._forget(slot)

    def set_node_addresses(self, old: frozenset[IPv4Address], new: frozenset[IPv4Address]) -> None:
        self._apply(
            Change(
                remove=tuple(node_address_element(address) for address in sorted(old - new)),
                add=tuple(node_address_element(address) for address in sorted(new - old)),
            )
        )

    def remove_all(self) -> None:
        """Remove every slot. Idempotent."""
        remove_all(self._plan.netns_dir, self._links)
        self._used.clear()
        self.ready.clear()

    @staticmethod
    def _source(slot: Slot) -> Element:
        return source_element(slot.interface, IPv4Address(slot.address))

    def _free_index(self) -> int:
        """Return the next index that nobody has, so that one is not used again at once."""
        for _ in range(self._plan.count):
            index = self._next
            self._next = (self._next + 1) % self._plan.count
            if index not in self._used:
                return index
        raise NetworkError(f"all {self._plan.count} slots of {self._plan.network} are in use")

    def _remove_quietly(self, slot: Slot) -> None:
        with contextlib.suppress(NetworkError):
            slots.remove(slot, self._links)


def remove_all(netns_dir: Path, links: Links) -> None:
    """Remove every slot of the namespace that `links` sees, and the pins of all."""
    found = slots.existing(netns_dir, links)
    with refusals("the slots' links cannot be removed"):
        links.delete_group(slots.GROUP)
    for index in sorted(found):
        slots.unpin_slot(netns_dir, index)
