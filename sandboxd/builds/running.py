"""A step run in a sandbox: its output line by line as it comes, its end."""

import codecs
import os
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import Final

from sandboxd.builds.plan import RunStep
from sandboxd.contract.frames import Batch, FrameKind
from sandboxd.contract.ids import new_id
from sandboxd.contract.images import LineKind
from sandboxd.contract.processes import OutputPolicy, ProcessSpec
from sandboxd.contract.reasons import ProcessReason
from sandboxd.processes.live import LiveSandbox
from sandboxd.processes.specs import guest_spec
from sandboxd.processes.streams import open_run
from sandboxd.processes.trust import Exit, ExitDetails, Lost

LINE: Final = 4096
"""Letters of one line of a log; a longer one is several."""
_TAIL: Final = 5
"""Lines of the output that the failure itself shows; the log has all of them."""
_KINDS: Final[Mapping[int, LineKind]] = {FrameKind.STDOUT: "stdout", FrameKind.STDERR: "stderr"}

Say = Callable[[LineKind, str], None]


class StepFailedError(Exception):
    """A step ended with something else than 0. `str()` says how, with the end of its output."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


async def run_step(sandbox: LiveSandbox, step: RunStep, secret_env: Mapping[str, str], say: Say) -> None:
    """Run a step to its end. StepFailedError; ProblemError when the sandbox fails it."""
    # It waits for its reader: nothing of a build's output is lost on the way.
    spec = ProcessSpec(argv=list(step.argv), env=dict(secret_env), output=OutputPolicy(mode="block"))
    output = _Output(say)
    async with (
        open_run(sandbox, guest_spec(spec, new_id("prc", os.urandom), None)) as run,
        aclosing(run.events) as events,
    ):
        async for event in events:
            if isinstance(event, Batch):
                output.add(event)
            elif isinstance(event, Lost):
                output.end_lines()
                say("lost", f"{event.lost_bytes or 'some'} bytes of output were lost")
            elif isinstance(event, Exit):
                output.end_lines()
                _judge(event.details, output.tail())


def _judge(details: ExitDetails, tail: str) -> None:
    if details.exit_code == 0:
        return
    if details.reason is ProcessReason.NOT_STARTED and details.start_error is not None:
        how = f"could not be started: {details.start_error.message}"
    elif details.reason is ProcessReason.SANDBOX_STOPPED:
        how = f"was cut off: {details.message or 'its sandbox ended'}"
    elif details.signal is not None:
        how = f"was ended by {details.signal} (exit code {details.exit_code})"
    else:
        how = f"ended with exit code {details.exit_code}"
    raise StepFailedError(f"{how}; it said last: {tail}" if tail else how, details.exit_code)


class _Output:
    """Output cut into lines, and the last ones of it."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._decoders = {kind: codecs.getincrementaldecoder("utf-8")("replace") for kind in _KINDS}
        self._open = dict.fromkeys(_KINDS, "")
        self._tail: deque[str] = deque(maxlen=_TAIL)

    def add(self, batch: Batch) -> None:
        for frame in batch.frames():
            if frame.kind in _KINDS:
                self._add(frame.kind, self._decoders[frame.kind].decode(frame.payload))

    def end_lines(self) -> None:
        """What has no end of line yet is a line now."""
        for kind, decoder in self._decoders.items():
            self._add(kind, decoder.decode(b"", final=True))
            if self._open[kind]:
                self._line(kind, self._open[kind])
                self._open[kind] = ""

    def tail(self) -> str:
        return " / ".join(line for line in self._tail if line.strip())[-1500:]

    def _add(self, kind: int, text: str) -> None:
        *whole, rest = (self._open[kind] + text).split("\n")
        for line in whole:
            self._line(kind, line)
        while len(rest) >= LINE:
            self._line(kind, rest[:LINE])
            rest = rest[LINE:]
        self._open[kind] = rest

    def _line(self, kind: int, text: str) -> None:
        text = text.removesuffix("\r")
        for at in range(0, max(len(text), 1), LINE):
            self._say(_KINDS[kind], text[at : at + LINE])
        self._tail.append(text[:LINE])
