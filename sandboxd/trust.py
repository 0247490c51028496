"""What this node believes of sandbox tokens: what the api last said, and for how long that holds.

A node that has heard nothing for a while stops believing any: it cannot know whose key has been revoked meanwhile.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

from sandboxd.clock import Clock
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.trust import GatewayInfo, Trust
from tunnels.tokens import Claims, TokenError, Verifier, decode

_GATEWAY_SECONDS: Final = 15.0
"""A gateway that has not said for so long that it is there is not."""


class TrustStore:
    """One a node. Streams that were opened with a token are held here, to be ended with its key."""

    def __init__(self, clock: Clock, *, silence_seconds: float) -> None:
        self._clock = clock
        self._silence_seconds = silence_seconds
        self._verifier = Verifier()
        self._revoked: frozenset[str] = frozenset()
        self._heard_at: float | None = None
        self._held: dict[str, dict[object, Callable[[], None]]] = {}
        self._gateway: tuple[float, GatewayInfo] | None = None
        self.revision = ""

    def learn(self, trust: Trust) -> None:
        """Believe what the api says, and end what it no longer allows."""
        self._verifier.trust(decode(key) for key in trust.keys)
        self._revoked = frozenset(trust.revoked)
        self.revision = trust.revision
        self.heard()
        for key in self._revoked.intersection(self._held):
            for end in list(self._held[key].values()):
                end()

    def heard(self) -> None:
        """The api has said that what is believed here holds."""
        self._heard_at = self._clock.boottime()

    def check(self, token: str | None, sandbox_id: str) -> Claims:
        """Return what a token says. Raises `unauthenticated`."""
        if token is None:
            raise _unauthenticated("missing", "There is no token.")
        if self._heard_at is None or self._clock.boottime() - self._heard_at > self._silence_seconds:
            raise _unauthenticated("unverifiable", "The node has not heard from the api for too long.")
        try:
            claims = self._verifier.check(token, now_seconds=self._clock.now().timestamp())
        except TokenError as error:
            raise _unauthenticated(error.reason, error.detail) from None
        if claims.key in self._revoked:
            raise _unauthenticated("revoked", "The key that made this token has been revoked.")
        if claims.sbx != sandbox_id:
            raise _unauthenticated("wrong_sandbox", "The token is for another sandbox.")
        return claims

    @contextmanager
    def hold(self, claims: Claims | None, end: Callable[[], None]) -> Generator[None]:
        """Have `end` called when the token's key is revoked while inside. Nothing to end without a token."""
        if claims is None:
            yield
            return
        mark = object()
        self._held.setdefault(claims.key, {})[mark] = end
        try:
            yield
        finally:
            held = self._held[claims.key]
            del held[mark]
            if not held:
                del self._held[claims.key]

    def greet(self, gateway: GatewayInfo) -> None:
        """Take note that the gateway is there."""
        self._gateway = (self._clock.boottime(), gateway)

    def gateway(self) -> GatewayInfo | None:
        """Return how the gateway is reached, if it is there."""
        if self._gateway is None or self._clock.boottime() - self._gateway[0] > _GATEWAY_SECONDS:
            return None
        return self._gateway[1]


def _unauthenticated(reason: str, detail: str) -> ProblemError:
    return ProblemError(
        "unauthenticated", detail, reason=reason, hint="Get a token by POST /v1/sandboxes/{id}/tokens, or ask the api."
    )
