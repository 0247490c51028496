"""Which addresses a download may reach: what a registry names, or a redirect of it, must not lead into this network."""

import ipaddress
import socket
from dataclasses import dataclass
from typing import Final

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_TRANSLATED: Final = ipaddress.IPv6Network("64:ff9b::/96")


class ForbiddenAddressError(OSError):
    """The host is at an address that must not be reached."""


@dataclass(frozen=True, slots=True)
class Trust:
    """What the operator said of one registry. Nothing: it is public, and speaks TLS."""

    insecure: bool = False
    """It speaks plain HTTP."""
    private: bool = False
    """It may be at a private address, and may send on to one."""


class GuardedResolver(AbstractResolver):
    """Resolves names to permitted addresses only, at the moment of connecting: no later answer slips past a check."""

    def __init__(self, registry_host: str, trust: Trust) -> None:
        self._registry_host = registry_host
        self._trust = trust
        self._names = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._names.resolve(host, port, family)
        own = host == self._registry_host
        good = [
            row for row in found if permitted(ipaddress.ip_address(row["host"].partition("%")[0]), self._trust, own=own)
        ]
        if not good:
            raise ForbiddenAddressError(f"{host} is at an address that must not be reached")
        return good

    async def close(self) -> None:
        await self._names.close()


def permitted(address: Address, trust: Trust, *, own: bool) -> bool:
    """Whether an address may be reached; `own` is the registry's own host, which alone may be this machine.

    Addresses that are only this link's are never reached: metadata services live there.
    """
    address = _plain(address)
    if address.is_loopback:
        return trust.private and own
    if address.is_link_local or address.is_multicast or address.is_unspecified or address.is_reserved:
        return False
    return address.is_global or trust.private


def literal(host: str) -> Address | None:
    """Return the address a host is written as, if it is one."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _plain(address: Address) -> Address:
    """Take out the IPv4 address that an IPv6 one stands for."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    inner = address.ipv4_mapped or address.sixtofour
    if inner is None and address in _TRANSLATED:
        inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return inner or address
