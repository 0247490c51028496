"""The terminal here joined to one inside: raw keys, sizes, and a way to leave without ending anything."""

import os
import shutil
import signal
import termios
import tty
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager
from typing import Final

import anyio
from anyio.abc import TaskGroup

from sandlot._async.attachment import AsyncAttachment
from sandlot.cli import show
from sandlot.errors import ProcessEndedError, SandboxEndedError, SandlotError, StdinClosedError

_READ_BYTES: Final = 65_536
_SIGNALS: Final = (signal.SIGWINCH, signal.SIGHUP)


def is_terminal() -> bool:
    """Tell whether a person sits at both ends."""
    try:
        return os.isatty(0) and os.isatty(1)
    except OSError:
        return False


def size() -> tuple[int, int]:
    """Return rows and columns, as far as the API takes them."""
    found = shutil.get_terminal_size()
    return min(max(found.lines, 1), 1000), min(max(found.columns, 1), 1000)


def variables() -> dict[str, str]:
    """Return what programs inside should know of this terminal."""
    return {name: os.environ[name] for name in ("TERM", "COLORTERM") if os.environ.get(name)}


class KeyWatch:
    """Finds the detach keys in what is typed, also when they come one by one.

    >>> keys = KeyWatch(b"ab")
    >>> keys.feed(b"xa"), keys.feed(b"xa"), keys.feed(b"by")
    ((b'x', False), (b'ax', False), (b'', True))
    """

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = b""

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """Return what is to be passed on, and whether the keys came: then nothing after them counts."""
        if not self._keys:
            return data, False
        data = self._held + data
        before, found, _ = data.partition(self._keys)
        if found:
            return before, True
        held = next((n for n in range(len(self._keys) - 1, 0, -1) if data.endswith(self._keys[:n])), 0)
        self._held = data[len(data) - held :]
        return data[: len(data) - held], False


class Conversation:
    """What a person and a terminal inside say to each other, until one of them leaves."""

    def __init__(self, attachment: AsyncAttachment, detach_keys: bytes) -> None:
        self._attachment = attachment
        self._keys = KeyWatch(detach_keys)
        self.is_detached = False
        self.exit_code: int | None = None
        """What to leave with when a signal ended it from outside."""

    async def hold(self) -> None:
        """Pass everything on, both ways, until the process ends or the keys come."""
        failure: SandlotError | None = None
        with _raw(), anyio.open_signal_receiver(*_SIGNALS) as signals:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._heed, signals, tasks)
                tasks.start_soon(self._type, tasks)
                try:
                    async with self._attachment as attachment:
                        await attachment.resize(*size())
                        async for frame in attachment:
                            await _write(frame.data)
                except SandlotError as error:
                    failure = error
                tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _type(self, tasks: TaskGroup) -> None:
        try:
            while True:
                await anyio.wait_readable(0)
                data = os.read(0, _READ_BYTES)
                if not data:
                    return
                passed, leaves = self._keys.feed(data)
                if passed:
                    await self._attachment.write(passed)
                if leaves:
                    self.is_detached = True
                    tasks.cancel_scope.cancel()
                    return
        except (StdinClosedError, ProcessEndedError, SandboxEndedError):
            return
        except SandlotError as error:
            show.note(f"input could not be sent: {error}")

    async def _heed(self, signals: AsyncIterator[signal.Signals], tasks: TaskGroup) -> None:
        async for number in signals:
            if number == signal.SIGWINCH:
                await self._attachment.resize(*size())
            else:
                self.exit_code = 128 + number
                tasks.cancel_scope.cancel()


@contextmanager
def _raw() -> Generator[None, None, None]:
    """Let every key through, and put the terminal back however this ends."""
    before = termios.tcgetattr(0)
    tty.setraw(0, termios.TCSADRAIN)  # what was typed already is for the program
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


async def _write(data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        await anyio.wait_writable(1)
        rest = rest[os.write(1, rest[:4096]) :]
