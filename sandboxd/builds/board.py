"""What is told of a build's steps while it goes on."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from sandboxd.builds.plan import Step
from sandboxd.contract.images import ImageState, LineKind, StepRecord
from sandboxd.images.runners import Watch


class Board:
    """All steps in order, as they are now."""

    def __init__(self, watch: Watch, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._watch = watch
        self._now = now
        self._rows: list[StepRecord] = []

    def add(self, steps: Sequence[Step]) -> int:
        """Put further steps on it; return the number of the first."""
        first = len(self._rows)
        for step in steps:
            text = f"{step.text} ({step.note})" if step.note else step.text
            self._rows.append(StepRecord(index=len(self._rows), text=text, state="pending"))
        return first

    def begin(self) -> None:
        """Show them."""
        self._watch.became(ImageState.BUILDING)
        self._watch.stepped(self._rows)

    def start(self, number: int) -> None:
        self._set(number, state="running", started_at=self._now())
        self._announce(number, "")

    def done(self, number: int, *, cached: bool = False) -> None:
        if cached:
            self._announce(number, "cached: ")
        self._set(number, state="done", cached=cached, ended_at=self._now())

    def failed(self, number: int, exit_code: int | None) -> None:
        self._set(number, state="failed", exit_code=exit_code, ended_at=self._now())

    def end(self) -> None:
        """What was not done was not needed."""
        for row in self._rows:
            if row.state == "pending":
                self._rows[row.index] = row.model_copy(update={"state": "skipped"})
        self._watch.stepped(self._rows)

    def say(self, number: int, kind: LineKind, text: str) -> None:
        self._watch.said(kind, text, number)

    def name(self, number: int) -> str:
        return f"step {number + 1} of {len(self._rows)} ({self._rows[number].text})"

    def _announce(self, number: int, how: str) -> None:
        self._watch.said("step", f"[{number + 1}/{len(self._rows)}] {how}{self._rows[number].text}", number)

    def _set(self, number: int, **changes: object) -> None:
        self._rows[number] = self._rows[number].model_copy(update=changes)
        self._watch.stepped(self._rows)
