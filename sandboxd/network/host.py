"""The host's side: the uplink of the router namespace, forwarding, one table, coexistence with other firewalls.

Everything here runs in a thread of the host's namespace. It owns what carries the instance's name and touches nothing
else but forwarding itself, which stays on when it goes: others may rely on it by then.
"""

import os
import re
import zlib
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

from netpolicy.compile import UPLINK, Change, host_table
from netpolicy.firewall import Firewall, FirewallError, delete_table, load_table, table_text
from netpolicy.tunnels import HOST_TUNNELS, RawTunnel, host_element, host_part
from sandboxd.network import coexistence
from sandboxd.network.base import NetworkError
from sandboxd.network.failures import refusals
from sandboxd.network.links import End, Link, Links, Neighbour
from sandboxd.network.netns import inside, is_pin, read_sysctl, write_sysctl

_EVERYWHERE = IPv4Network("0.0.0.0/0")
_HOST_MAC = bytes.fromhex("025c00000001")
_ROUTER_MAC = bytes.fromhex("025c00000002")
_DEFAULT_MTU = 1500
_CHANGING = re.compile(r"set tunnel\w* \{.*?\n\t\}", re.DOTALL)
_ELEMENTS = re.compile(r"\s*elements = \{.*\}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Uplink:
    """The /31 between the host and the router namespace."""

    network: IPv4Network

    @property
    def host(self) -> IPv4Interface:
        return IPv4Interface((self.network[0], 31))

    @property
    def router(self) -> IPv4Interface:
        return IPv4Interface((self.network[1], 31))


class HostSide:
    """What one instance has in the host's namespace."""

    def __init__(self, *, instance: str, uplink_range: IPv4Network, router_pin: Path) -> None:
        self.link_name = f"sl{instance}"
        self.table_name = f"sandlot_{instance}"
        self._range = uplink_range
        self._router_pin = router_pin
        self._first = zlib.crc32(instance.encode())
        self._firewall = Firewall(table=self.table_name)
        self.tunnels: tuple[RawTunnel, ...] = ()
        """What its table sends on to the router; set before `set_up`, and then changed by `set_tunnel` alone."""
        self._uplink: Uplink | None = None
        self._loaded: str | None = None
        self._generation = b""

    def close(self) -> None:
        self._firewall.close()

    def set_up(self) -> None:
        """Make or adopt the uplink, then the rules."""
        with refusals("the host's side of the network cannot be set up"):
            self._ensure_uplink()
            write_sysctl("ipv4/ip_forward", "1")
            self._load()

    def repair(self) -> None:
        with refusals("the host's side of the network cannot be repaired"):
            self._ensure_uplink()
            write_sysctl("ipv4/ip_forward", "1")
            # The kernel counts changes of rules: the same number means that nobody touched any.
            if coexistence.legacy_tables() or self._firewall.generation() != self._generation:
                if self._text() != self._loaded or self._firewall.keys(HOST_TUNNELS) != self._keys():
                    self._load()
                coexistence.accept_forwarding(self.link_name, self.table_name)
                self._generation = self._firewall.generation()

    def remove(self) -> None:
        """Idempotent."""
        with refusals("the host's side of the network cannot be removed"), Links() as links:
            coexistence.withdraw(self.link_name, self.table_name)
            delete_table(self.table_name)
            link = links.find(self.link_name)
            if link is not None:
                links.delete(link.index)

    def set_tunnel(self, tunnel: RawTunnel, *, present: bool) -> None:
        """Send a tunnel's port on to the router, or not any more. Idempotent."""
        others = tuple(other for other in self.tunnels if other.public_port != tunnel.public_port)
        self.tunnels = (*others, tunnel) if present else others
        element = (host_element(tunnel),)
        with refusals("the host's table cannot be changed for a tunnel"):
            try:
                self._firewall.apply(Change(add=element) if present else Change(remove=element))
            except FirewallError:
                # Somebody flushed the rules: they come back with it.
                self._load()

    def addresses(self) -> frozenset[IPv4Address]:
        """Return the host's own addresses, which no sandbox may reach."""
        with refusals("the host's addresses cannot be read"), Links() as links:
            return frozenset(address.ip for address in links.addresses())

    def public_address(self) -> IPv4Address | None:
        """Return the host's address on the way to the internet."""
        with refusals("the host's addresses cannot be read"), Links() as links:
            device = _default_device(links)
            found = [] if device is None else links.addresses(device.index)
            return found[0].ip if found else None

    def mtu(self) -> int:
        """Return the MTU towards the internet."""
        with refusals("the host's routes cannot be read"), Links() as links:
            device = _default_device(links)
            return device.mtu if device is not None else _DEFAULT_MTU

    def problems(self) -> list[str]:
        found: list[str] = []
        with refusals("the host's side of the network cannot be looked at"), Links() as links:
            if links.find(self.link_name) is None:
                found.append(f"The uplink {self.link_name} is missing: restart sandboxd or wait for its next repair.")
            if _default_device(links) is None:
                found.append("The host has no default route: sandboxes with open egress reach nothing.")
            if read_sysctl("ipv4/ip_forward") != "1":
                found.append("net.ipv4.ip_forward is 0 and something keeps setting it so: look in /etc/sysctl.d.")
            if table_text(self.table_name) is None:
                found.append(f"The nftables table {self.table_name} is missing: something flushes the rules.")
            found.extend(coexistence.problems(self.link_name, self.table_name))
        return found

    def _load(self) -> None:
        if self._uplink is None:
            raise NetworkError("the uplink is not there yet")
        router = self._uplink.router.ip
        load_table(
            host_table(
                name=self.table_name,
                uplink=self.link_name,
                address=router,
                tunnels=host_part(self.tunnels, uplink=self.link_name, router=router),
            )
        )
        self._loaded = self._text()
        coexistence.accept_forwarding(self.link_name, self.table_name)
        self._generation = self._firewall.generation()

    def _text(self) -> str | None:
        """Return the table as the kernel has it, without what changes while it stands."""
        text = table_text(self.table_name)
        return None if text is None else _CHANGING.sub(lambda found: _ELEMENTS.sub("", found[0]), text)

    def _keys(self) -> set[bytes]:
        return {host_element(tunnel).key for tunnel in self.tunnels}

    def _ensure_uplink(self) -> None:
        if not is_pin(self._router_pin):
            raise NetworkError(f"the router namespace {self._router_pin} is gone")
        with Links() as links:
            link = links.find(self.link_name)
            uplink = self._whole(links, link)
            if uplink is None:
                if link is not None:
                    links.delete(link.index)
                uplink = self._make_uplink(links)
        _quiet(self.link_name)
        if uplink != self._uplink:
            self._uplink = uplink
            self._generation = b""
            self._loaded = None

    def _whole(self, links: Links, link: Link | None) -> Uplink | None:
        """Return the uplink if both its ends are as they were made."""
        if link is None or not link.up:
            return None
        addresses = links.addresses(link.index)
        if len(addresses) != 1 or not addresses[0].network.subnet_of(self._range):
            return None
        uplink = Uplink(addresses[0].network)
        if addresses[0] != uplink.host or links.neighbours(link.index) != [_router_end(uplink)]:
            return None
        with inside(self._router_pin), Links() as within:
            other = within.find(UPLINK)
            if other is None or not other.up or within.addresses(other.index) != [uplink.router]:
                return None
            gateways = {route.gateway for route in within.routes() if route.network == _EVERYWHERE}
            known = within.neighbours(other.index) == [_host_end(uplink)]
            return uplink if known and gateways == {uplink.host.ip} else None

    def _make_uplink(self, links: Links) -> Uplink:
        with inside(self._router_pin), Links() as within:
            stale = within.find(UPLINK)
            if stale is not None:
                within.delete(stale.index)
        device = _default_device(links)
        handle = os.open(self._router_pin, os.O_RDONLY | os.O_CLOEXEC)
        try:
            links.make_veth(
                End(name=self.link_name, mac=_HOST_MAC),
                End(name=UPLINK, mac=_ROUTER_MAC),
                handle,
                device.mtu if device is not None else _DEFAULT_MTU,
            )
        finally:
            os.close(handle)
        uplink = self._address(links, _existing(links, self.link_name))
        with inside(self._router_pin), Links() as within:
            other = _existing(within, UPLINK)
            within.configure(other.index, address=uplink.router, neighbour=_host_end(uplink), gateway=uplink.host.ip)
        return uplink

    def _address(self, links: Links, link: Link) -> Uplink:
        """Give the host's end addresses that nobody here uses: other instances look for theirs at the same time."""
        count = self._range.num_addresses // 2
        for place in range(count):
            offset = 2 * ((self._first + place) % count)
            uplink = Uplink(IPv4Network((self._range.network_address + offset, 31)))
            if _is_taken(links, uplink.network, but=link.index):
                continue
            links.configure(link.index, address=uplink.host, neighbour=_router_end(uplink))
            if not _is_taken(links, uplink.network, but=link.index):
                return uplink
            links.remove_addresses(link.index)
        raise NetworkError(f"all of {self._range} is in use on this host: set another range for the uplink")


def _is_taken(links: Links, network: IPv4Network, but: int) -> bool:
    used = [route.network for route in links.routes() if route.network != _EVERYWHERE and route.link != but]
    for link in links.all():
        if link.index != but:
            used.extend(address.network for address in links.addresses(link.index))
    return any(network.overlaps(other) for other in used)


def _existing(links: Links, name: str) -> Link:
    link = links.find(name)
    if link is None:
        raise NetworkError(f"the link {name} disappeared while it was made")
    return link


def _default_device(links: Links) -> Link | None:
    ways = [route.link for route in links.routes() if route.network == _EVERYWHERE]
    return next((link for link in links.all() if link.index in ways), None)


def _quiet(link_name: str) -> None:
    if Path(f"/proc/sys/net/ipv6/conf/{link_name}").exists():
        write_sysctl(f"ipv6/conf/{link_name}/disable_ipv6", "1")
    write_sysctl(f"ipv4/conf/{link_name}/rp_filter", "1")
    # A program here that takes a tunnel by a loopback address gets its answers from the uplink. Nobody else is there:
    # the table lets nothing in that the router's side began.
    write_sysctl(f"ipv4/conf/{link_name}/route_localnet", "1")


def _router_end(uplink: Uplink) -> Neighbour:
    return Neighbour(uplink.router.ip, _ROUTER_MAC)


def _host_end(uplink: Uplink) -> Neighbour:
    return Neighbour(uplink.host.ip, _HOST_MAC)
