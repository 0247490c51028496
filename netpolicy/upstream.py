"""Asks the node's resolvers for the addresses of a name, through sandboxd's relay, and remembers what they said.

One question at a time for each name however many ask. Answers are kept as long as they may be, within bounds.
"""

import asyncio
import secrets
import socket
from collections import OrderedDict
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from netpolicy import dns

_TAG_BYTES: Final = 4
_ANSWER_BYTES: Final = 4 + 4096
_SECONDS: Final = 13.0
"""Longer than the relay needs for all its servers and rounds."""
_LEAST_SECONDS: Final = 1
_MOST_SECONDS: Final = 300
_FAILED_SECONDS: Final = 2
_KEPT: Final = 8192
_AT_ONCE: Final = 256


class UnresolvedError(Exception):
    """A name has no address, or nobody could say. `reason` is stable."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Resolved:
    """What is known of a name until `until`, by the loop's clock."""

    answer: dns.Answer | None
    until: float


class Upstream:
    """The program's way to the relay. `run` must run for it to hear answers."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._known: OrderedDict[str, Resolved] = OrderedDict()
        self._asking: dict[str, asyncio.Future[dns.Answer | None]] = {}
        self._tags: dict[bytes, asyncio.Future[bytes]] = {}
        self._room = asyncio.Semaphore(_AT_ONCE)

    async def run(self) -> None:
        """Hear answers until the relay ends."""
        loop = asyncio.get_running_loop()
        self._end.setblocking(False)  # noqa: FBT003 - its only parameter
        while data := await loop.sock_recv(self._end, _ANSWER_BYTES):
            waiting = self._tags.get(data[:_TAG_BYTES])
            if waiting is not None and not waiting.done():
                waiting.set_result(data[_TAG_BYTES:])

    async def resolve(self, name: str) -> tuple[tuple[IPv4Address, ...], int]:
        """Return the addresses of a canonical name and for how many seconds they hold. UnresolvedError without any."""
        now = asyncio.get_running_loop().time()
        known = self._known.get(name)
        if known is None or known.until <= now:
            await self._learn(name)
            known = self._known[name] if name in self._known else Resolved(None, now)
        if known.answer is None or known.answer.code not in {dns.NO_ERROR, dns.NO_SUCH_NAME}:
            raise UnresolvedError("resolution_failed")
        if not known.answer.addresses:
            raise UnresolvedError("no_such_name")
        return known.answer.addresses, max(_LEAST_SECONDS, int(known.until - now))

    async def _learn(self, name: str) -> None:
        asking = self._asking.get(name)
        if asking is not None:
            await asyncio.shield(asking)
            return
        loop = asyncio.get_running_loop()
        asking = self._asking[name] = loop.create_future()
        answer: dns.Answer | None = None
        try:
            answer = await self._ask(name)
        finally:
            self._keep(name, answer, loop.time())
            del self._asking[name]
            asking.set_result(answer)

    async def _ask(self, name: str) -> dns.Answer | None:
        number, tag = secrets.randbelow(65_536), secrets.token_bytes(_TAG_BYTES)
        loop = asyncio.get_running_loop()
        waiting = self._tags[tag] = loop.create_future()
        try:
            async with self._room, asyncio.timeout(_SECONDS):
                await loop.sock_sendall(self._end, tag + dns.ask(name, number))
                return dns.read_answer(await waiting, name, number)
        except (TimeoutError, OSError, dns.DnsError):
            return None
        finally:
            del self._tags[tag]

    def _keep(self, name: str, answer: dns.Answer | None, now: float) -> None:
        seconds = _FAILED_SECONDS
        if answer is not None and answer.addresses:
            seconds = min(max(answer.ttl, _LEAST_SECONDS), _MOST_SECONDS)
        self._known[name] = Resolved(answer, now + seconds)
        self._known.move_to_end(name)
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
