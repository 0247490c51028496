"""The seam between jobs and what carries them out: one runner for each kind of source.

A runner makes an image and puts it into the store, under no name. It is cancelled when its job is, and must then leave
nothing behind but what a later try may go on from. What a source tells it is never trusted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sandboxd.contract.images import ImageReason, ImageState, LineKind, StartImageJob, StepRecord
from sandboxd.contract.messages import NodeImage
from sandboxd.images.base import ImageConfig


class JobError(Exception):
    """A job has failed. `str()` is for people and holds no secret."""

    def __init__(self, reason: ImageReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What a runner has made: it is in the store."""

    image: NodeImage
    platform: str
    config: ImageConfig
    dropped: Mapping[str, int] = field(default_factory=dict[str, int])
    origin_digest: str | None = None
    domain: str | None = None
    """Whose content it is in the store; None: the project's that asked."""


class Watch(Protocol):
    """Told how a job goes on. Every call is cheap; what is said is bounded by who is told."""

    def became(self, state: ImageState) -> None:
        """It is `importing` or `building` now."""
        ...

    def moved(self, done_bytes: int, total_bytes: int) -> None:
        """So much of what is to be fetched is here."""
        ...

    def said(self, kind: LineKind, text: str, step: int | None = None) -> None:
        """Put a line into the log."""
        ...

    def stepped(self, steps: Sequence[StepRecord]) -> None:
        """Replace what is known of the steps."""
        ...


class Runner(Protocol):
    """Carries out jobs of one kind."""

    resumes: bool
    """Whether a job that a restart of the node cut off is simply begun again."""

    async def run(self, job_id: str, asked: StartImageJob, watch: Watch) -> Made:
        """Make the image. JobError; ProblemError where the request itself cannot be."""
        ...

    def clean(self, job_id: str) -> None:
        """Remove what is kept of a job that will not go on. Called once it has ended, for every job. Blocks."""
        ...
