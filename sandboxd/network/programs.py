"""One program of the router namespace, kept alive: started, told everything, started again with a growing pause."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

import structlog

from netpolicy.channel import Channel, ChannelError
from sandboxd.network.base import NetworkError
from sandboxd.network.births import Birth, Running

_log = structlog.get_logger(__name__)

_BACK_OFF_SECONDS: Final = (0.0, 0.1, 0.5, 2.0, 5.0)
_STEADY_SECONDS: Final = 30.0
"""A program that ran so long begins again without a pause."""
_ANSWER_SECONDS: Final = 5.0
"""One that takes longer to answer is stuck: it is killed, which closes everything it has open."""

_GREETED: Final = 0

Message = dict[str, Any]


class ProgramDownError(NetworkError):
    """The program does not run, or did not answer: what it had open is closed."""


class Program:
    """A program that runs while `opened`.

    `greeting` says what a new one is told before anything else; `serve` takes what it says that is no answer, and may
    return one. Whatever a program says is taken for the word of somebody hostile: it reads what sandboxes send.
    """

    def __init__(
        self,
        name: str,
        birth: Birth,
        *,
        greeting: Callable[[], Iterable[Message]],
        serve: Callable[[Message], Awaitable[Message | None]],
        relay: Callable[[Any], contextlib.AbstractAsyncContextManager[None]],
    ) -> None:
        self.name = name
        self._birth = birth
        self._greeting = greeting
        self._serve = serve
        self._relay = relay
        self._channel: Channel | None = None
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._numbers = itertools.count(1)
        self._running: Running | None = None
        self.up = asyncio.Event()
        """Set while it runs and has been told everything."""
        self.starts = 0

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[None]:
        """Keep it running while inside; nothing of it is left after that."""
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self._keep(), name=f"program {self.name}")
            try:
                yield
            finally:
                task.cancel()

    async def clear(self) -> None:
        """Kill what an earlier agent left of it."""
        await self._birth.clear()

    async def call(self, message: Message) -> Message:
        """Say something and return the answer. ProgramDownError: it is dead now; its successor is told everything."""
        channel = self._channel
        if channel is None:
            raise ProgramDownError(f"the {self.name} does not run")
        number = next(self._numbers)
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await channel.send(message | {"call": number})
                return await answer
        except (TimeoutError, ChannelError) as error:
            await self._kill()
            raise ProgramDownError(f"the {self.name} does not answer") from error
        finally:
            self._waiting.pop(number, None)

    async def _keep(self) -> None:
        failures = 0
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            how = await self._live()
            failures = 0 if loop.time() - began > _STEADY_SECONDS else failures + 1
            pause = _BACK_OFF_SECONDS[min(failures, len(_BACK_OFF_SECONDS) - 1)]
            _log.warning("program ended", program=self.name, how=how, again_in_seconds=pause)
            await asyncio.sleep(pause)

    async def _live(self) -> str:
        """Run it once; return how it ended."""
        try:
            running = await self._birth.start()
        except (NetworkError, OSError) as error:
            return str(error)
        self._running = running
        self.starts += 1
        try:
            channel = await Channel.over(running.channel)
            async with self._relay(running.upstream), asyncio.TaskGroup() as group:
                talk = group.create_task(self._talk(channel))
                how = await running.ended()
                talk.cancel()
            return how
        finally:
            self._channel = None
            self.up.clear()
            self._running = None
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(ChannelError(f"the {self.name} has ended"))
            await asyncio.shield(running.kill())
            running.close()

    async def _talk(self, channel: Channel) -> None:
        try:
            # No turn of the loop lies between: whatever changes is in the greeting or follows it.
            for message in self._greeting():
                channel.post(message)
            self._channel = channel
            channel.post({"call": _GREETED})
            async with asyncio.TaskGroup() as group:
                while (message := await channel.receive()) is not None:
                    self._take(channel, message, group)
        except* (ChannelError, ValueError, KeyError, TypeError) as errors:
            _log.warning("program broken", program=self.name, error=str(errors.exceptions[0]))
        finally:
            channel.close()
        await self._kill()

    def _take(self, channel: Channel, message: Message, group: asyncio.TaskGroup) -> None:
        number = message.get("answer")
        if number == _GREETED:
            self.up.set()
        elif number is not None:
            waiting = self._waiting.get(number)
            if waiting is not None and not waiting.done():
                waiting.set_result(message)
        else:
            group.create_task(self._answer(channel, message))

    async def _answer(self, channel: Channel, message: Message) -> None:
        answer = await self._serve(message)
        if answer is not None:
            await channel.send(answer | {"answer": message["call"]})

    async def _kill(self) -> None:
        if self._running is not None:
            await self._running.kill()
