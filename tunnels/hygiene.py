"""Headers between a client outside and a server inside, which trust neither each other nor us. Pure.

In goes no credential of the platform and nothing that only the gateway may say; out comes nothing that only the gateway
may say.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast
from urllib.parse import unquote_plus

from tunnels.routing import BEARER_PREFIX, PARAMETER, TOKEN_HEADER, Visit
from tunnels.tokens import AUDIENCE, canonical, decode, encode, looks_like_token
from tunnels.ways import MOST_TOKENS

Pairs = Sequence[tuple[str, str]]

HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_SAID_BY_US: Final = frozenset({"forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-prefix", "x-real-ip"})
_OURS: Final = ("x-sandlot-", "sandlot-")
_NOT_OUT: Final = frozenset({"alt-svc"})
_NOT_OUT_BY_PATH: Final = frozenset(
    {"service-worker-allowed", "clear-site-data", "strict-transport-security", "public-key-pins"}
)
"""What would speak for the whole origin, which the path form shares among sandboxes."""
_KEY: Final = re.compile(r"(sandlot(op)?_[a-z2-7]{39}|e2b_[0-9a-f]{48})")
_LOCATION: Final = re.compile(r"(?P<origin>(?:https?:)?//(?P<host>[^/?#\\]+))?(?P<path>/.*)", re.IGNORECASE)
_WORD: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client brought: tokens, in the order in which they are tried."""

    tokens: list[str] = field(repr=False)
    in_address: str | None = field(default=None, repr=False)
    """The one that stood in the address."""


def credentials_of(headers: Pairs, target: str) -> Credentials:
    """Return the tokens of a request: header, bearer, address, cookies."""
    found: list[str] = [value.strip() for name, value in headers if name.lower() == TOKEN_HEADER.lower()]
    for name, value in headers:
        scheme, _, bearer = value.partition(" ")
        if name.lower() == "authorization" and scheme.lower() == "bearer" and looks_like_token(bearer.strip()):
            found.append(bearer.strip())
    _, _, query = target.partition("?")
    given = [unquote_plus(part.partition("=")[2]) for part in query.split("&") if _is_ours(part)]
    # Addresses are passed on and kept: only what is bound to a port may stand in one. The node checks that it says so.
    given = [token for token in given[:1] if "port" in _said(token)]
    found += given
    for name, value in headers:
        if name.lower() == "cookie":
            found += [part.strip().partition("=")[2] for part in value.split(";") if _is_our_cookie(part)]
    tokens = list(dict.fromkeys(token for token in found if token and len(token) <= 4096))[:MOST_TOKENS]
    return Credentials(tokens, given[0] if given else None)


def without_token(target: str) -> str:
    """Return a target without our parameter in its query."""
    path, mark, query = target.partition("?")
    kept = "&".join(part for part in query.split("&") if not _is_ours(part))
    return path + mark + kept if kept else path


def _is_ours(part: str) -> bool:
    return unquote_plus(part.partition("=")[0]) == PARAMETER


def _is_our_cookie(part: str) -> bool:
    """Tell whether a browser takes a cookie for ours: it strips names, and sends what has none as it is."""
    return part.lstrip(" \t=").partition("=")[0].strip() == PARAMETER


def inward(
    headers: Pairs, visit: Visit, *, client: str, scheme: str, host: str, identity: dict[str, Any] | None
) -> list[tuple[str, str]]:
    """Return the headers that the server inside is sent."""
    dropped = HOP_BY_HOP | _named_in_connection(headers) | _SAID_BY_US | {"x-forwarded-proto", "x-forwarded-port"}
    kept: list[tuple[str, str]] = []
    for name, value in headers:
        plain = name.lower().replace("_", "-")
        if plain in dropped or plain.startswith(_OURS) or _is_credential(plain, value):
            continue
        passed = _without(_WITHIN[plain], value) if plain in _WITHIN else value
        if passed or plain not in _WITHIN:
            kept.append((name, passed))
    kept += [
        ("X-Forwarded-For", client),
        ("X-Forwarded-Proto", scheme),
        ("X-Forwarded-Host", host),
        ("X-Sandlot-Sandbox", visit.sandbox_id),
        ("X-Sandlot-Client-Address", client),
    ]
    if visit.cut:
        kept.append(("X-Forwarded-Prefix", visit.cut))
    if identity is not None:
        kept.append(("X-Sandlot-Identity", encode(canonical(identity))))
    return kept


def _without(rule: tuple[str, Callable[[str], bool]], value: str) -> str:
    """Return a list without its parts that are ours."""
    mark, is_ours = rule
    return f"{mark} ".join(part.strip() for part in value.split(mark) if not is_ours(part))


def _is_bearer(offered: str) -> bool:
    return offered.strip().startswith(BEARER_PREFIX)


_WITHIN: Final = {"cookie": (";", _is_our_cookie), "sec-websocket-protocol": (",", _is_bearer)}
"""Headers that may hold a credential of the platform beside what is the app's own."""


def _named_in_connection(headers: Pairs) -> frozenset[str]:
    words = ",".join(value for name, value in headers if name.lower() == "connection").split(",")
    # A sender must not have its own framing, or what we say, taken out by naming it here.
    return frozenset(word.strip().lower() for word in words) - {"", "host", "content-length", "cookie"}


def _is_credential(name: str, value: str) -> bool:
    """Tell whether a header holds a credential of this platform. One of the app's own passes."""
    if name == "authorization":
        scheme, _, value = value.partition(" ")
        if scheme.lower() != "bearer":
            return False
    elif name != "x-api-key":
        return False
    value = value.strip()
    return _KEY.fullmatch(value) is not None or is_platform_token(value)


def is_platform_token(token: str) -> bool:
    """Tell whether a token is one of this platform's, good or not."""
    return _said(token).get("aud") == AUDIENCE


def _said(token: str) -> dict[str, Any]:
    """Return what a token says, unchecked."""
    if not looks_like_token(token) or token.count(".") != 2:
        return {}
    try:
        claims: Any = json.loads(decode(token.split(".")[1]))
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", claims) if isinstance(claims, dict) else {}


def outward(headers: Iterable[tuple[str, str]], visit: Visit, host: str = "") -> list[tuple[str, str]]:
    """Return the headers that the client is sent of an answer from inside; `host` is the one that it asked."""
    pairs = list(headers)
    dropped = HOP_BY_HOP | _named_in_connection(pairs) | _NOT_OUT
    if visit.form != "host":
        dropped |= _NOT_OUT_BY_PATH
    kept: list[tuple[str, str]] = []
    for name, value in pairs:
        plain = name.lower()
        if plain in dropped or plain.startswith(_OURS):
            continue
        if plain == "location":
            kept.append((name, own_location(value, visit.cut, host)))
        elif plain != "set-cookie":
            kept.append((name, value))
        elif not _is_our_cookie(value):
            kept.append((name, own_cookie(value, visit.prefix)))
    return kept


def own_cookie(value: str, prefix: str = "") -> str:
    """Return a cookie that reaches nobody but the server that set it.

    Without its domain: else it would go to the names of other sandboxes. With a `prefix` that all sandboxes' servers
    have on one origin, its path is below that.
    """
    pair, *given = value.split(";")
    kept = [part for part in given if _attribute(part) != "domain"]
    if prefix:
        paths = [part.partition("=")[2].strip() for part in kept if _attribute(part) == "path"]
        # The last one counts (RFC 6265); without any it is for all of the server.
        path = paths[-1] if paths and paths[-1].startswith("/") else "/"
        kept = [part for part in kept if _attribute(part) != "path"] + [f" Path={below(path, prefix)}"]
    return ";".join([pair, *kept])


def _attribute(part: str) -> str:
    return part.partition("=")[0].strip().lower()


def own_location(value: str, prefix: str, host: str) -> str:
    """Return where a redirect leads as the client must ask for it: the server knows nothing of what is cut off."""
    found = _LOCATION.fullmatch(value) if prefix else None
    if found is None or (found["host"] is not None and found["host"].lower() != host.lower()):
        return value
    return (found["origin"] or "") + below(found["path"], prefix)


def below(path: str, prefix: str) -> str:
    """Return a path below a prefix, unless it is there already."""
    return path if path == prefix or path.startswith(prefix + "/") else prefix + path


def token_cookie(token: str, visit: Visit, *, secure: bool, seconds: int) -> str:
    """Return the Set-Cookie that keeps a token for one port of one sandbox."""
    path = visit.prefix + "/" if visit.prefix else "/"
    rest = f"; Max-Age={seconds}; Path={path}; HttpOnly; SameSite=Lax"
    return f"{PARAMETER}={token}{rest}" + ("; Secure" if secure else "")


def upgrade_of(headers: Pairs) -> str | None:
    """Return the protocol that a request wants to go over to."""
    asked = [value for name, value in headers if name.lower() == "upgrade"]
    connection = ",".join(value for name, value in headers if name.lower() == "connection").lower().split(",")
    if len(asked) != 1 or "upgrade" not in [word.strip() for word in connection]:
        return None
    return asked[0] if _WORD.fullmatch(asked[0]) else None


def wants_html(headers: Pairs) -> bool:
    """Tell whether a page is wanted rather than JSON, as browsers do."""
    accept = ",".join(value for name, value in headers if name.lower() == "accept").lower()
    html, as_json = accept.find("text/html"), accept.find("json")
    return html >= 0 and (as_json < 0 or html < as_json)
