"""Where a request at the gateway is to go. Pure.

Four ways, in this order: by headers, by the name asked for, by path, or a call of the data plane.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal
from urllib.parse import urlsplit

SANDBOX_HEADER: Final = "Sandlot-Sandbox-Id"
PORT_HEADER: Final = "Sandlot-Sandbox-Port"
PARAMETER: Final = "sandlot_token"
"""Of a query or a cookie."""
TOKEN_HEADER: Final = "Sandlot-Token"  # noqa: S105 - the name of a header
BEARER_PREFIX: Final = "sandlot.bearer."
"""Of a subprotocol that a browser offers to hand in a credential."""
GUEST_PORT: Final = 49979
"""The agent's own port in every sandbox: nothing leads there."""

_SANDBOX: Final = re.compile(r"sbx[a-z2-7]{20}")
_LABEL: Final = re.compile(r"([1-9][0-9]{0,4})-(sbx[a-z2-7]{20})")
_PORT: Final = re.compile(r"[1-9][0-9]{0,4}")
_HOST: Final = re.compile(r"([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_PATH: Final = re.compile(r"/([sw])/([^/?]*)/([^/?]*)(?=/|\?|$)")
"""`/s/`: the server inside sees what follows. `/w/`: it sees the whole path, as those need whose links begin at it."""
_CALL: Final = re.compile(r"/v1/sandboxes/([^/?]*)/([a-z]+)(?=/|\?|$)")
_LAST_PORT: Final = 65_535

Form = Literal["header", "host", "path"]


class RoutingError(Exception):
    """The request leads nowhere: `malformed_request`, `route_not_found`, `sandbox_not_found`, `tunnel_not_found`."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Visit:
    """A request for what an http tunnel leads to."""

    sandbox_id: str
    port: int
    form: Form
    target: str
    """Path and query as the server inside is to see them."""
    prefix: str = ""
    """What of the path leads to the server: nothing else of this origin is its own."""
    is_whole: bool = False
    """Whether the server sees that too."""

    @property
    def cut(self) -> str:
        """What of the path the server inside does not see."""
        return "" if self.is_whole else self.prefix


@dataclass(frozen=True, slots=True)
class DataCall:
    """A call of the data plane."""

    sandbox_id: str
    call: str


@dataclass(frozen=True, slots=True)
class Names:
    """What a gateway answers to."""

    domain: str | None
    by_path: bool

    def find(
        self, target: str, hosts: Sequence[str], sandboxes: Sequence[str], ports: Sequence[str]
    ) -> Visit | DataCall:
        """Return where a request goes: its target in origin form, and its Host and our two headers, all of them."""
        if not target.startswith("/"):
            raise RoutingError("malformed_request", "The request's target is not a path.")
        if len(hosts) != 1 or (host := _HOST.fullmatch(hosts[0])) is None:
            raise RoutingError("malformed_request", "There must be one Host header, with a name.")
        if sandboxes or ports:
            return _by_headers(target, sandboxes, ports)
        label = self._label_of(host[1])
        if label is not None:
            return _visit(*_of_label(label), "host", target)
        if self.by_path and (found := _PATH.match(target)) is not None:
            return _by_path(target, found)
        if (found := _CALL.match(target)) is not None:
            return DataCall(found[1], found[2])
        raise RoutingError("route_not_found", "Nothing is served here.")

    def sandbox_of_name(self, server_name: str) -> tuple[str, int] | None:
        """Return the sandbox and port that a name below the domain stands for."""
        label = self._label_of(server_name)
        found = None if label is None else _LABEL.fullmatch(label)
        if found is None or int(found[1]) > _LAST_PORT or int(found[1]) == GUEST_PORT:
            return None
        return found[2], int(found[1])

    def _label_of(self, host: str) -> str | None:
        """Return what precedes the domain in a name; None for a name that is not below it."""
        name = host.lower().removesuffix(".")
        if self.domain is None or not name.endswith("." + self.domain):
            return None
        return name[: -len(self.domain) - 1]


def _by_headers(target: str, sandboxes: Sequence[str], ports: Sequence[str]) -> Visit:
    if len(sandboxes) != 1 or len(ports) != 1:
        raise RoutingError("malformed_request", f"{SANDBOX_HEADER} and {PORT_HEADER} go together, each once.")
    return _visit(sandboxes[0], ports[0], "header", target)


def _by_path(target: str, found: re.Match[str]) -> Visit:
    prefix, rest = target[: found.end()], target[found.end() :]
    seen = rest if rest.startswith("/") else "/" + rest
    visit = _visit(found[2], found[3], "path", seen, prefix)
    return visit if found[1] == "s" else replace(visit, target=prefix + seen, is_whole=True)


def _of_label(label: str) -> tuple[str, str]:
    found = _LABEL.fullmatch(label)
    if found is None:
        raise RoutingError("sandbox_not_found", "The name is not that of a port of a sandbox: {port}-{sandbox}.")
    return found[2], found[1]


def _visit(sandbox_id: str, port: str, form: Form, target: str, prefix: str = "") -> Visit:
    if _SANDBOX.fullmatch(sandbox_id) is None:
        raise RoutingError("sandbox_not_found", "This is no sandbox's id.")
    if _PORT.fullmatch(port) is None or int(port) > _LAST_PORT:
        raise RoutingError("tunnel_not_found", "This is no port.")
    if int(port) == GUEST_PORT:
        raise RoutingError("tunnel_not_found", "This port is the sandbox's agent's own; nothing leads to it.")
    return Visit(sandbox_id, int(port), form, target, prefix)


def host_of(gateway_url: str, domain: str, sandbox_id: str, port: int) -> str:
    """Return the origin of a port of a sandbox: the gateway's, under a name of its own."""
    parts = urlsplit(gateway_url)
    own_port = "" if parts.port is None else f":{parts.port}"
    return f"{parts.scheme}://{port}-{sandbox_id}.{domain}{own_port}"


def path_of(sandbox_id: str, port: int) -> str:
    """Return the path below which a gateway without names serves a port of a sandbox."""
    return f"/s/{sandbox_id}/{port}/"
