"""Where a secret may go: host names, and `*.name` for what is below one. Pure."""

from collections.abc import Collection
from typing import Final

from netpolicy.names import canonical_name, is_below

_BELOW: Final = "*."


def canonical_host(text: str) -> str:
    """Return an entry of `hosts` in its one form. NameRefusedError."""
    if text.startswith(_BELOW):
        return _BELOW + canonical_name(text.removeprefix(_BELOW))
    return canonical_name(text)


def covers(hosts: Collection[str], name: str) -> bool:
    """Tell whether canonical entries let a secret go to a canonical name; `*.name` is not the name itself."""
    return any(is_below(name, host.removeprefix(_BELOW)) if host.startswith(_BELOW) else name == host for host in hosts)
