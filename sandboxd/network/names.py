"""Names, decided by two programs in the router namespace: the resolver and the proxy, and what sandboxd does for them.

sandboxd holds the policies; a program that comes back is told them all before it serves anybody. What a program says
is checked against the policy that it was given, because it reads what sandboxes send.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import AddressValueError, IPv4Address
from typing import Any, Final

from netpolicy.credentials import Credentials
from netpolicy.judge import platform_document
from netpolicy.platform import PLATFORM, Platform
from netpolicy.policy import BLOCKED, Policy
from netpolicy.rewrite import MOST_VALUE
from netpolicy.verdict import openings
from sandboxd.network.base import NetworkError
from sandboxd.network.births import Birth
from sandboxd.network.programs import Message, Program, ProgramDownError
from sandboxd.network.relay import Relay

_ADDRESSES: Final = 32
_MOST_SECONDS: Final = 600
_LEAST_SECONDS: Final = 60
"""How long a learned address stays open at least: whoever was told of it connects in a moment, not at once."""
_ROWS: Final = 4096
_INJECTING: Final = "proxy"
"""The program that puts secrets into requests; no other is told any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What the resolver is about to say to a sandbox, and what is open before it does."""

    sandbox: str
    name: str
    addresses: tuple[IPv4Address, ...]
    seconds: int


Learn = Callable[[str, str, Iterable[IPv4Address], int], Awaitable[None]]
Decided = Callable[[str, list[dict[str, Any]]], None]


async def _learn_nothing(address: str, name: str, addresses: Iterable[IPv4Address], seconds: int) -> None:
    raise NetworkError(f"nobody opens {list(addresses)} of {name} to {address} for {seconds} s")


def _tell_nobody(program: str, rows: list[dict[str, Any]]) -> None:
    """Drop them."""


class NamePrograms:
    """`Names` by programs that run while `opened`."""

    def __init__(self, births: dict[str, Birth], relay: Relay, authorities: str = "") -> None:
        """`authorities`: certificates, in PEM, by which servers are verified before they get a secret."""
        self._authorities = authorities
        self._policies: dict[str, Policy] = {}
        self._credentials: dict[str, Credentials] = {}
        self._told: set[str] = set()
        """Whose policies the programs know: those that name names, and what came after them."""
        self.platform = PLATFORM
        self.learn: Learn = _learn_nothing
        """Opens addresses of a name in the kernel and returns when they are."""
        self.decided: Decided = _tell_nobody
        """Takes rows of decisions as they come, and the name of the program that made them."""
        self.programs = {
            name: Program(
                name,
                birth,
                greeting=partial(self._greeting, name),
                serve=partial(self._serve, name),
                relay=relay.between,
            )
            for name, birth in births.items()
        }

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[None]:
        """Run them while inside."""
        async with AsyncExitStack() as stack:
            for program in self.programs.values():
                await stack.enter_async_context(program.opened())
            yield

    def policy_of(self, address: str) -> Policy:
        """Return what the sandbox at an address is judged by."""
        return self._policies.get(address, BLOCKED)

    async def clear(self) -> None:
        """Kill what an earlier agent left."""
        for program in self.programs.values():
            await program.clear()

    async def apply(self, address: str, policy: Policy | None, credentials: Credentials | None = None) -> int:
        if policy is None:
            self._policies.pop(address, None)
        else:
            self._policies[address] = policy
        if policy is None or credentials is None or not policy.inject:
            self._credentials.pop(address, None)
        else:
            self._credentials[address] = credentials
        known = address in self._told
        if not known and (policy is None or not policy.named):
            return 0  # no packet of it ever comes to a program
        if policy is None:
            self._told.discard(address)
        else:
            self._told.add(address)
        said = [self._say(program, self._policy_message(name, address)) for name, program in self.programs.items()]
        return sum(await asyncio.gather(*said))

    async def set_platform(self, platform: Platform) -> None:
        self.platform = platform
        message = {"platform": platform_document(platform)}
        await asyncio.gather(*(self._say(program, message) for program in self.programs.values()))

    async def _say(self, program: Program, message: Message) -> int:
        try:
            closed = (await program.call(message)).get("closed")
        except ProgramDownError:
            return 0  # and so is everything it had open
        return closed if isinstance(closed, int) and 0 <= closed < 1 << 20 else 0

    def _greeting(self, program: str) -> Iterable[Message]:
        yield {"platform": platform_document(self.platform)}
        if program == _INJECTING:
            yield {"authorities": self._authorities}
        for address in self._told:
            yield self._policy_message(program, address)

    def _policy_message(self, program: str, address: str) -> Message:
        """Say what a sandbox is judged by; to the one program that needs them, with what it puts into requests."""
        policy = self._policies.get(address)
        message: Message = {"address": address, "policy": None if policy is None else policy.to_json()}
        credentials = self._credentials.get(address)
        if program != _INJECTING or policy is None or credentials is None:
            return message
        return message | {"credentials": _needed(credentials, policy).to_json()}

    async def _serve(self, program: str, message: Message) -> Message | None:
        if "decisions" in message:
            self.decided(program, list(message["decisions"])[:_ROWS])
            return None
        learned = self._checked(message)
        if learned is None:
            return {"learned": False}
        try:
            await self.learn(learned.sandbox, learned.name, learned.addresses, learned.seconds)
        except NetworkError:
            return {"learned": False}
        return {"learned": True}

    def _checked(self, message: Message) -> Learned | None:
        """Return what may be opened; the ports are the policy's, whatever the resolver says."""
        policy = self._policies.get(str(message["learn"]))
        name = str(message["name"])
        try:
            addresses = tuple(IPv4Address(str(text)) for text in list(message["addresses"])[:_ADDRESSES])
        except AddressValueError:
            return None
        if policy is None or any(address in self.platform.node_addresses for address in addresses):
            return None
        if any(self.platform.is_denied(address) for address in addresses):
            return None
        seconds = min(max(int(message["seconds"]), _LEAST_SECONDS), _MOST_SECONDS)
        if not openings(policy, name):
            return None
        return Learned(sandbox=str(message["learn"]), name=name, addresses=addresses, seconds=seconds)


class FakeNames:
    """`Names` that keeps what it was told."""

    def __init__(self) -> None:
        self.policies: dict[str, Policy] = {}
        self.credentials: dict[str, Credentials | None] = {}
        self.platform = PLATFORM
        self.closes = 0
        """What `apply` answers next."""

    async def apply(self, address: str, policy: Policy | None, credentials: Credentials | None = None) -> int:
        if policy is None:
            self.policies.pop(address, None)
        else:
            self.policies[address] = policy
        self.credentials[address] = credentials
        closed, self.closes = self.closes, 0
        return closed

    async def set_platform(self, platform: Platform) -> None:
        self.platform = platform


def _needed(credentials: Credentials, policy: Policy) -> Credentials:
    """Leave out what no header can be made of: so a message has a bound."""
    named = {entry.secret for entry in policy.inject}
    values = {
        name: value for name, value in credentials.values.items() if name in named and len(value.encode()) <= MOST_VALUE
    }
    return replace(credentials, values=values)
