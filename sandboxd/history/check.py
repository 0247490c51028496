"""What a guest's feed says, checked, as rows of a log. Pure. A breach is a GuestError.

The words themselves are the sandbox's; when they were written is believed within what can be true.
"""

from collections.abc import Iterator
from typing import Any, Final

from pydantic import ValidationError

from sandboxd.contract.frames import MAX_PAYLOAD, OUTPUT_KINDS, Batch, FrameKind, Head
from sandboxd.contract.ids import is_id
from sandboxd.guest_client.base import GuestError
from sandboxd.guest_client.wire import parse_object
from sandboxd.history.rows import Known, LogRow, forget_oldest, lost_row
from sandboxd.processes.trust import MAX_SEQ, ExitDetails

MOST_RUNNING: Final = 40_000
"""More than a sandbox may have processes."""
_MOST_PROCESSES: Final = 1_000_000
_LONGEST: Final[dict[int, int]] = {FrameKind.ATTACHED: 1024, FrameKind.LOST: 1024}
_SLACK_US: Final = 1_000_000


class FeedCheck:
    """Follows one sandbox's feed through any number of connections."""

    def __init__(self, known: Known, began_us: int) -> None:
        """`known`: what the log holds already. Nothing was written before `began_us`."""
        self.processes: int | None = None
        """How many processes there are, by the guest's last word."""
        self.known = Known(dict(known.positions), dict(known.ended))
        self._began_us = began_us
        self._process_id = ""
        self._position = 0

    def begin(self) -> None:
        """Take note that a connection begins."""
        self._process_id = ""

    def admit(self, batch: Batch, now_us: int) -> list[LogRow]:
        """Return what a batch says; neighbours of one channel are one row."""
        rows: list[LogRow] = []
        for head in batch.heads:
            row = self._row(batch, head, now_us)
            if row is not None:
                _join(rows, row)
        return rows

    def _row(self, batch: Batch, head: Head, now_us: int) -> LogRow | None:
        if head.kind == FrameKind.KEEPALIVE and head.length == 0:
            return None
        if head.skip or head.length > _LONGEST.get(head.kind, MAX_PAYLOAD):
            raise GuestError("a frame of the feed has flags or is too long")
        if head.kind == FrameKind.ATTACHED:
            self._turn_to(parse_object(bytes(batch.payload(head))))
            return None
        if not self._process_id or head.seq != self._position:
            raise GuestError(f"a frame of the feed at {head.seq} where {self._position} was next")
        return self._of_process(batch, head, self._believable(head.time_us, now_us))

    def _turn_to(self, named: dict[str, Any]) -> None:
        process_id, processes = named.get("process_id"), named.get("processes")
        if not isinstance(process_id, str) or not is_id("prc", process_id):
            raise GuestError("the feed names no process")
        if process_id in self.known.ended:
            raise GuestError("the feed goes on behind an exit")
        if process_id not in self.known.positions and len(self.known.positions) >= MOST_RUNNING:
            raise GuestError("the feed names more processes than there can be")
        if type(processes) is int and 0 <= processes <= _MOST_PROCESSES:
            self.processes = processes
        self._process_id = process_id
        self._position = self.known.positions.setdefault(process_id, 0)

    def _of_process(self, batch: Batch, head: Head, at_us: int) -> LogRow:
        payload = bytes(batch.payload(head))
        row = LogRow(head.kind, at_us, self._process_id, head.seq, payload)
        if head.kind in OUTPUT_KINDS and payload:
            self._advance(len(payload))
            return row
        if head.kind == FrameKind.LOST:
            lost = parse_object(payload).get("lost_bytes")
            if type(lost) is not int or not 0 < lost <= MAX_SEQ:
                raise GuestError("a lost frame without lost_bytes")
            self._advance(lost)
            return lost_row(self._process_id, head.seq, lost, at_us, FrameKind.LOST)
        if head.kind == FrameKind.EXIT:
            try:
                details = ExitDetails.model_validate(parse_object(payload))
            except ValidationError as error:
                raise GuestError("not an exit") from error
            self.known.positions.pop(self._process_id, None)
            self.known.ended[self._process_id] = None
            forget_oldest(self.known)
            self._process_id = ""
            return row._replace(payload=details.model_dump_json().encode())
        raise GuestError(f"a frame of kind {head.kind} in the feed")

    def _advance(self, count: int) -> None:
        self._position += count
        if self._position > MAX_SEQ:
            raise GuestError("a position beyond every process")
        self.known.positions[self._process_id] = self._position

    def _believable(self, time_us: int, now_us: int) -> int:
        """Return when something was written: as the guest says if that can be, else now."""
        return time_us if self._began_us - _SLACK_US <= time_us <= now_us + _SLACK_US else now_us


def _join(rows: list[LogRow], row: LogRow) -> None:
    if rows and row.kind in OUTPUT_KINDS:
        last = rows[-1]
        same = (last.kind, last.process_id) == (row.kind, row.process_id)
        if same and len(last.payload) + len(row.payload) <= MAX_PAYLOAD:
            rows[-1] = last._replace(payload=last.payload + row.payload)
            return
    rows.append(row)


def unfinished(known: Known, time_us: int, message: str) -> Iterator[LogRow]:
    """Yield the last rows of processes whose sandbox ended under them: more may have been written, and it is over."""
    details = ExitDetails.model_validate(
        {"exit_code": 137, "signal": "SIGKILL", "reason": "sandbox_stopped", "message": message}
    )
    payload = details.model_dump_json().encode()
    for process_id, position in list(known.positions.items()):
        yield lost_row(process_id, position, 0, time_us, FrameKind.LOST)
        yield LogRow(FrameKind.EXIT, time_us, process_id, position, payload)
