"""Slots: a namespace, a veth with a routed /31, permanent neighbours; made, checked, cleaned for another, removed.

Everything here runs in the router namespace's thread.
"""

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path

from netpolicy.router_side import SLOT_PREFIX
from sandboxd.network.base import NetworkError, Slot
from sandboxd.network.failures import refusals
from sandboxd.network.links import End, Links, Neighbour
from sandboxd.network.netns import disable_ipv6, inside, is_pin, pin_here, unpin

INSIDE = "eth0"
_PIN_PREFIX = "slot"
_LOOPBACK = 1
_INSIDE_INDEX = 2
_FIRST_INDEX = 1000
"""Router-side links get the slot's index from here on, so that nothing needs to be looked up."""


@dataclass(frozen=True, slots=True)
class SlotPlan:
    """How an index becomes names and addresses. Pure."""

    netns_dir: Path
    network: IPv4Network
    mtu: int

    @property
    def count(self) -> int:
        return min(self.network.num_addresses // 2, 0xFFFE)

    def slot(self, index: int) -> Slot:
        peer = self.network.network_address + 2 * index
        return Slot(
            index=index,
            netns_path=self.netns_dir / f"{_PIN_PREFIX}{index}",
            interface=f"{SLOT_PREFIX}{index}",
            address=str(peer + 1),
            peer=str(peer),
            mtu=self.mtu,
        )


GROUP = 0x5B
"""Of all router-side ends, so that they can go together."""


def existing(netns_dir: Path, links: Links) -> set[int]:
    """Return every slot of which anything is left, be it only a pin or a link."""
    names = [path.name.removeprefix(_PIN_PREFIX) for path in netns_dir.glob(f"{_PIN_PREFIX}*")]
    names += [link.name.removeprefix(SLOT_PREFIX) for link in links.all() if link.name.startswith(SLOT_PREFIX)]
    return {int(name) for name in names if name.isdecimal()}


def make(slot: Slot, links: Links) -> None:
    """Make a slot; if that fails nothing of it is left."""
    with refusals(f"slot {slot.index} cannot be made"):
        try:
            with inside(None):
                pin_here(slot.netns_path)
                disable_ipv6()
            with _open(slot.netns_path) as handle:
                links.make_veth(
                    End(name=slot.interface, mac=_mac(slot, 1), index=_link_index(slot), group=GROUP),
                    End(name=INSIDE, mac=_mac(slot, 2), index=_INSIDE_INDEX),
                    handle,
                    slot.mtu,
                )
            links.configure(
                _link_index(slot),
                address=IPv4Interface(f"{slot.peer}/31"),
                neighbour=Neighbour(_inner(slot).ip, _mac(slot, 2)),
            )
            with inside(slot.netns_path), Links() as within:
                _address(slot, within)
                _verify_inside(slot, within)
            verify_outside(slot, links)
        except BaseException:
            remove(slot, links)
            raise


def recycle(slot: Slot, links: Links) -> None:
    """Make a used slot as good as new; NetworkError if that is not certain, and then it should be removed.

    The runtime takes the addresses along, and with them routes and neighbours.
    """
    with refusals(f"slot {slot.index} cannot be used again"):
        verify_outside(slot, links)
        with inside(slot.netns_path), Links() as within:
            who = _inhabitants(slot)
            _expect(not who, slot, f"still inside: {who}")
            within.remove_addresses(_INSIDE_INDEX)
            _address(slot, within)
            _verify_inside(slot, within)


def is_empty(slot: Slot) -> bool:
    """Whether nobody is inside; a slot that is gone is empty."""
    if not is_pin(slot.netns_path):
        return True
    with refusals(f"slot {slot.index} cannot be looked at"), inside(slot.netns_path):
        return not _inhabitants(slot)


def verify_outside(slot: Slot, links: Links) -> None:
    """NetworkError unless the slot's pin and its end in the router namespace are whole."""
    with refusals(f"slot {slot.index} cannot be looked at"):
        _expect(is_pin(slot.netns_path), slot, f"no namespace is bound to {slot.netns_path}")
        link = links.find(slot.interface)
        _expect(link is not None and link.up, slot, f"link {slot.interface} is missing or down")
        index = _link_index(slot)
        _expect(links.addresses(index) == [IPv4Interface(f"{slot.peer}/31")], slot, "the router's address is wrong")
        neighbours = links.neighbours(index)
        _expect(neighbours == [Neighbour(_inner(slot).ip, _mac(slot, 2))], slot, "the router's neighbour is wrong")


def remove(slot: Slot, links: Links) -> None:
    """Remove whatever is left of a slot. Idempotent.

    The link goes first: then whoever may still be inside reaches nothing.
    """
    with refusals(f"slot {slot.index} cannot be removed"):
        link = links.find(slot.interface)
        if link is not None:
            links.delete(link.index)
        unpin(slot.netns_path)


def unpin_slot(netns_dir: Path, index: int) -> None:
    unpin(netns_dir / f"{_PIN_PREFIX}{index}")


def _address(slot: Slot, within: Links) -> None:
    within.configure(_LOOPBACK)
    peer = Neighbour(IPv4Interface(f"{slot.peer}/31").ip, _mac(slot, 1))
    within.configure(_INSIDE_INDEX, address=_inner(slot), neighbour=peer, gateway=peer.address)


def _verify_inside(slot: Slot, within: Links) -> None:
    links = {link.name: link for link in within.all()}
    _expect(set(links) == {"lo", INSIDE}, slot, f"its namespace has links {sorted(links)}")
    _expect(links["lo"].up and links[INSIDE].up, slot, "a link inside is down")
    _expect(links[INSIDE].index == _INSIDE_INDEX and links[INSIDE].mtu == slot.mtu, slot, f"{INSIDE} is another link")
    _expect(within.addresses(_INSIDE_INDEX) == [_inner(slot)], slot, "the address inside is wrong")
    peer = IPv4Interface(f"{slot.peer}/31")
    routes = {(route.network, route.gateway, route.link) for route in within.routes()}
    expected = {
        (peer.network, None, _INSIDE_INDEX),
        (IPv4Network("0.0.0.0/0"), peer.ip, _INSIDE_INDEX),
    }
    _expect(routes == expected, slot, "the routes inside are wrong")
    neighbours = within.neighbours(_INSIDE_INDEX)
    _expect(neighbours == [Neighbour(peer.ip, _mac(slot, 1))], slot, "the neighbour inside is wrong")


def _inhabitants(slot: Slot) -> list[str]:
    """Return who could see the next sandbox's traffic: packet sockets and processes that outlived the last one."""
    found = ["a packet socket"] * (len(Path("/proc/thread-self/net/packet").read_text().splitlines()) - 1)
    identity = slot.netns_path.stat().st_ino
    return found + [f"process {pid}" for pid, namespace in _namespaces() if namespace == identity]


def _namespaces() -> Iterator[tuple[int, int]]:
    for name in os.listdir("/proc"):  # noqa: PTH208 - entries are names here, and there are thousands
        if name.isdecimal():
            try:
                yield int(name), os.stat(f"/proc/{name}/ns/net").st_ino  # noqa: PTH116 - the same
            except OSError:
                continue


def _expect(holds: bool, slot: Slot, what: str) -> None:
    if not holds:
        raise NetworkError(f"slot {slot.index} is not whole: {what}")


def _inner(slot: Slot) -> IPv4Interface:
    return IPv4Interface(f"{slot.address}/31")


def _mac(slot: Slot, end: int) -> bytes:
    return bytes((0x02, 0x5B, end)) + slot.index.to_bytes(3, "big")


def _link_index(slot: Slot) -> int:
    return _FIRST_INDEX + slot.index


@contextmanager
def _open(path: Path) -> Generator[int, None, None]:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield handle
    finally:
        os.close(handle)
