"""What happened on the node since its agent started, counted for whoever watches it."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Counts:
    """One set a node agent; written by runners, read by its metrics."""

    starts: Counter[str] = field(default_factory=Counter[str])
    """Starts by outcome: `running`, `failed`, `overtaken` by a stop."""
    ends: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    """Ended sandboxes by state and reason."""
    adoptions: Counter[str] = field(default_factory=Counter[str])
    """Sandboxes found at start, by what became of them: `adopted`, `buried`, `failed`."""
    cleanup_errors: int = 0
    """Hooks that could not be undone at a try."""
    api_reachable: bool = False
    """Whether the last report was taken."""
