"""What a benchmark says: rows with their baseline from the same run, and the page they end on."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter

PAGE: Final = Path(__file__).parents[2] / "docs" / "benchmarks.md"
KEPT: Final = PAGE.with_suffix(".json")
"""What the page is made of: by benchmark, the last run of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured promise. `limit` bounds the ratio where there is a baseline, the value where there is none."""

    name: str
    unit: str
    value: float
    baseline: float | None = None
    baseline_name: str = ""
    limit: float | None = None
    more_is_better: bool = False
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """The value over its baseline."""
        return None if not self.baseline else self.value / self.baseline

    @property
    def verdict(self) -> str:
        """`met`, `missed`, or nothing where no limit is agreed."""
        if self.limit is None:
            return ""
        held_against = self.value if self.ratio is None else self.ratio
        met = held_against >= self.limit if self.more_is_better else held_against <= self.limit
        return "met" if met else "missed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of one benchmark."""

    at: str
    """The minute, UTC."""
    machine: str
    rows: list[Row]
    failed: str = ""
    """Why it has no rows."""


_RUNS: Final = TypeAdapter(dict[str, Run])


def kept() -> dict[str, Run]:
    """Return the last run of each benchmark."""
    return _RUNS.validate_json(KEPT.read_bytes()) if KEPT.exists() else {}


def keep(runs: Mapping[str, Run]) -> None:
    """Make these what is kept, and the page what they say."""
    KEPT.write_bytes(_RUNS.dump_json(dict(runs), indent=1) + b"\n")
    PAGE.write_text(render(runs))


def median(samples: Sequence[float]) -> float:
    """Return the p50."""
    return statistics.median(samples)


def percentile(samples: Sequence[float], percent: int) -> float:
    """Return the sample at or below which `percent` of all lie."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))]


OTHERS: Final = """
## Beside others

Create → first output of `node -v`, as others are measured: the public ComputeSDK benchmark of 2026-05-05 (100 rounds
each; its commit `0a010e0`), milliseconds. **Not the same measurement as ours**: theirs goes over the internet to a
hosted service on machines of its own, ours over loopback to two shared cores. Only orders of magnitude can be compared.

| service | in turn, p50 | in turn, p95 | 100 at once, p50 | 100 at once, p95 |
|---|---|---|---|---|
| Daytona | 186 | 492 | 367 | 611 |
| E2B | 491 | 685 | 822 | 965 |
| Blaxel | 525 | 568 | 1,610 | 1,800 |
| Vercel Sandbox | 671 | 1,062 | 832 | 1,308 |
| Runloop | 1,688 | 1,931 | 6,662 | 11,196 |
| Modal (gVisor, too) | 1,723 | 2,309 | 2,261 | 2,943 |
| Cloudflare | 2,056 | 2,969 | 2,092 | 3,035 |
"""
"""Figures of hosted services, published by a third party; they do not change with our runs."""


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _line(row: Row) -> str:
    sign = "≥" if row.more_is_better else "≤"
    budget = "" if row.limit is None else f"{sign} {_number(row.limit)}{' ×' if row.baseline else ' ' + row.unit}"
    baseline = "" if row.baseline is None else f"{_number(row.baseline)} {row.unit} ({row.baseline_name})"
    ratio = "" if row.ratio is None else f"{row.ratio:.2f} ×"
    return f"| {row.name} | {_number(row.value)} {row.unit} | {baseline} | {ratio} | {budget} | {row.verdict} |"


def render(runs: Mapping[str, Run]) -> str:
    """Return the whole page."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`, or for some of them by `make bench BENCH='pool burst'`: each says when it was run.",
        "Ratios are taken against the raw tool in the same run, on the same machine; absolute numbers of a shared",
        "machine drift by tens of percent between runs, the ratios much less.",
    ]
    for name, run in runs.items():
        lines += ["", f"## {name}", "", f"{run.at} UTC, {run.machine}", ""]
        if run.failed:
            lines.append(f"Not measured: {run.failed}")
            continue
        lines += ["| what | measured | baseline | ratio | budget | |", "|---|---|---|---|---|---|"]
        lines += [_line(row) for row in run.rows]
        notes = [f"- **{row.name}**: {row.note}" for row in run.rows if row.note]
        lines += ["", *notes] if notes else []
    return "\n".join(lines) + "\n" + OTHERS
