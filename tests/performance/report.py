"""What a benchmark says: rows with their baseline from the same run, and the page they end on."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

PAGE: Final = Path(__file__).parents[2] / "docs" / "benchmarks.md"


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


def render(rows: Sequence[Row], machine: str, at: datetime, failed: Mapping[str, str] | None = None) -> str:
    """Return the whole page. `failed` says why a benchmark has no rows."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`. Ratios are taken against the raw tool in the same run, on the same machine; absolute",
        "numbers of a shared machine drift by tens of percent between runs, the ratios much less.",
        "",
        f"{at:%Y-%m-%d %H:%M} UTC, {machine}",
        "",
        "| what | measured | baseline | ratio | budget | |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        sign = "≥" if row.more_is_better else "≤"
        budget = "" if row.limit is None else f"{sign} {_number(row.limit)}{' ×' if row.baseline else ' ' + row.unit}"
        baseline = "" if row.baseline is None else f"{_number(row.baseline)} {row.unit} ({row.baseline_name})"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f} ×"
        lines.append(
            f"| {row.name} | {_number(row.value)} {row.unit} | {baseline} | {ratio} | {budget} | {row.verdict} |"
        )
    notes = [f"- **{row.name}**: {row.note}" for row in rows if row.note]
    if notes:
        lines += ["", "## How each was taken", "", *notes]
    if failed:
        lines += ["", "## Not measured in this run", "", *(f"- `{name}`: {why}" for name, why in failed.items())]
    return "\n".join(lines) + "\n" + OTHERS
