"""What every program of the router namespace does: hears policies, tells decisions, ends with sandboxd."""

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final

from netpolicy.channel import Channel, ChannelError
from netpolicy.credentials import Credentials
from netpolicy.judge import Judge, platform_from_document
from netpolicy.platform import PLATFORM
from netpolicy.program import Given
from netpolicy.tally import Tally
from netpolicy.upstream import Upstream
from netpolicy.verified import verifying

_UNSENT_BYTES: Final = 4 << 20
"""With so much waiting, sandboxd has other worries: decisions are dropped."""

Message = dict[str, Any]


class _Over(Exception):  # noqa: N818 - no error
    """Something the program cannot be without has ended."""


class Member:
    """One program's dealings with sandboxd. Policies are kept by the sandbox's address."""

    def __init__(self, channel: Channel, upstream: Upstream) -> None:
        self._channel = channel
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self.upstream = upstream
        self.judges: dict[str, Judge] = {}
        self.credentials: dict[str, Credentials] = {}
        """By the sandbox's address, where its policy puts something into requests; told to the proxy alone."""
        self.verifying = verifying("")
        """What verifies the servers that get something; until it is told, none."""
        self._platform = PLATFORM
        self.tally = Tally(self._tell)
        self.changed: Callable[[str], int] = lambda _: 0
        """Called after a policy has changed; returns how many connections that closed."""

    async def call(self, message: Message) -> Message:
        """Ask sandboxd for something. ChannelError when it is gone."""
        number = next(self._numbers)
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            await self._channel.send(message | {"call": number})
            return await answer
        finally:
            del self._waiting[number]

    async def run(self) -> None:
        """Hear sandboxd until it is gone."""
        while (message := await self._channel.receive()) is not None:
            number = message.get("answer")
            if number is None:
                self._take(message)
            elif number in self._waiting and not self._waiting[number].done():
                self._waiting[number].set_result(message)

    def _take(self, message: Message) -> None:
        closed = 0
        if "policy" in message:
            address = message["address"]
            if message["policy"] is None:
                self.judges.pop(address, None)
            else:
                self.judges[address] = Judge.from_document(message["policy"], self._platform)
            self._take_credentials(address, message.get("credentials"))
            closed = self.changed(address)
        elif "authorities" in message:
            self.verifying = verifying(message["authorities"])
        elif "platform" in message:
            self._platform = platform_from_document(message["platform"])
            for address, judge in self.judges.items():
                self.judges[address] = replace(judge, platform=self._platform)
                closed += self.changed(address)
        if "call" in message:
            self._channel.post({"answer": message["call"], "closed": closed})

    def _take_credentials(self, address: str, document: Message | None) -> None:
        if document is None:
            self.credentials.pop(address, None)
        else:
            self.credentials[address] = Credentials.from_json(document)

    def _tell(self, message: Message) -> None:
        with contextlib.suppress(ChannelError):
            if self._channel.unsent_bytes < _UNSENT_BYTES:
                self._channel.post(message)


async def serve(given: Given, work: Callable[[Member], Awaitable[None]]) -> None:
    """Do a program's work until sandboxd is gone."""
    channel = await Channel.over(given.channel)
    upstream = Upstream(given.upstream)
    member = Member(channel, upstream)

    async def until_over(part: Awaitable[None]) -> None:
        # The first to end ends the program: without sandboxd, its relay or its work there is nothing left to do.
        await part
        raise _Over

    try:
        async with asyncio.TaskGroup() as group:
            for part in (member.run(), upstream.run(), work(member)):
                group.create_task(until_over(part))
    except* _Over:
        pass
    finally:
        channel.close()
        given.upstream.close()
