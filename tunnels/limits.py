"""How many connections there may be, of everybody and of one client. Pure.

A connection costs memory before anybody knows who has opened it.
"""

from collections import Counter
from ipaddress import IPv6Address, ip_address
from typing import Final

_HOST_BITS: Final = 64


class Limits:
    """Counts connections, of all clients and of each."""

    def __init__(self, *, most: int, most_of_one: int) -> None:
        self._most = most
        self._most_of_one = most_of_one
        self._by_address: Counter[str] = Counter()
        self.open = 0
        self.refused = 0

    def enter(self, address: str) -> bool:
        """Take one more in; False where there are too many."""
        client = _client_of(address)
        if self.open >= self._most or self._by_address[client] >= self._most_of_one:
            self.refused += 1
            return False
        self.open += 1
        self._by_address[client] += 1
        return True

    def leave(self, address: str) -> None:
        client = _client_of(address)
        self.open -= 1
        self._by_address[client] -= 1
        if not self._by_address[client]:
            del self._by_address[client]


def _client_of(address: str) -> str:
    """Return what counts as one client: an address, or of version 6 the network that one host is given."""
    try:
        found = ip_address(address)
    except ValueError:
        return address
    if found.version == 4:
        return address
    return str(found.ipv4_mapped or IPv6Address(int(found) >> _HOST_BITS << _HOST_BITS))
