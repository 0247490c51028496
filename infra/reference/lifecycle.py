"""The page of states and reasons."""

from typing import Final

from sandboxd.contract.reasons import REASONS, ProcessReason
from sandboxd.contract.states import NODE_STATES, NOT_READY, SETTLED, TERMINAL, TRANSITIONS, SandboxState

_MEANINGS: Final = {
    SandboxState.PENDING: "Promised by the api, not yet taken by a node.",
    SandboxState.STARTING: "A node runs its hooks, or claims a ready sandbox.",
    SandboxState.RUNNING: "The guest answers.",
    SandboxState.PAUSING: "Its memory is being written down. Not offered by this version.",
    SandboxState.PAUSED: "Its memory is on disk and its clocks stand still. Not offered by this version.",
    SandboxState.RESUMING: "Its memory is being read back. Not offered by this version.",
    SandboxState.STOPPING: "Its end is decided; its processes are being told.",
    SandboxState.STOPPED: "Ended as asked or as agreed (deadlines, entrypoint).",
    SandboxState.FAILED: "Ended by something nobody asked for.",
    SandboxState.LOST: "Its node is out of reach. Not an ending.",
}

_PROCESS: Final = {
    ProcessReason.EXITED: ("the program's own", "It ended by itself."),
    ProcessReason.SIGNALED: ("128 + the signal's number", "A signal ended it."),
    ProcessReason.TIMED_OUT: ("124", "It ran longer than its `timeout_seconds`."),
    ProcessReason.OUTPUT_LIMIT: ("137", "It wrote more than `output.limit_bytes`."),
    ProcessReason.KILLED: ("137", "A call of `signal` with SIGKILL ended its tree."),
    ProcessReason.SANDBOX_STOPPED: ("137", "Its sandbox ended under it; the sandbox has the reason."),
    ProcessReason.NOT_STARTED: (
        "127 not found, else 126",
        "The command could not be executed; `start_error` says why.",
    ),
}

_HEAD: Final = """\
# The life of a sandbox

Drawn from `sandboxd/contract/states.py` and `sandboxd/contract/reasons.py` by `python -m infra.reference`; a test
holds it to them.

```
pending ──► starting ──► running ──► stopping ──► stopped
                          │   ▲
                  pausing ▼   │ resuming
                          paused

any state but stopped and failed ──► failed
any state but stopped and failed ──► lost ──► its true state when the node returns, or failed (node_lost)
```

A sandbox ends exactly once, in one of the terminal states, with one reason that is kept with its record.
What was asked for (`desired_state`) and what was seen (`state`) are two fields; `generation` counts changes of the
first.
"""

_SETS: Final = """
*terminal*: ended for good · *settled*: nothing is under way · *not ready*: calls into it wait up to 30 s ·
*the api's*: a node never says it
"""

_DECIDED: Final = """\
One pure function decides from evidence; an intent written down before the act wins over whatever is seen afterwards.
"""


def page() -> str:
    """Return the page."""
    states = [f"| `{state}` | {_MEANINGS[state]} | {', '.join(_sets(state))} |" for state in SandboxState]
    moves = [f"| `{row.source}` | `{row.target}` | {row.because} |" for row in TRANSITIONS]
    reasons = [
        f"| `{row.reason}` | `{row.ends_as}` | {row.evidence} | {_yes(row.retryable)} | {_yes(row.billed)} |"
        for row in REASONS
    ]
    processes = [f"| `{reason}` | {code} | {text} |" for reason, (code, text) in _PROCESS.items()]
    return "\n".join(
        [
            _HEAD,
            "## States\n",
            "| state | means | is |",
            "|---|---|---|",
            *states,
            _SETS,
            "## Moves\n",
            "Every legal move; any other is a bug and raises.\n",
            "| from | to | because |",
            "|---|---|---|",
            *moves,
            "\n## Why sandboxes end\n",
            _DECIDED,
            "| reason | ends as | evidence | trying again can help | billed up to the end |",
            "|---|---|---|---|---|",
            *reasons,
            "\n## Why processes end\n",
            "`exit_code` is 0 only with `exited`. Memory that runs out ends the whole sandbox (`out_of_memory`).\n",
            "| reason | exit code | means |",
            "|---|---|---|",
            *processes,
            "",
        ]
    )


def _sets(state: SandboxState) -> list[str]:
    named = {"terminal": TERMINAL, "settled": SETTLED, "not ready": NOT_READY}
    words = [name for name, states in named.items() if state in states]
    return words if state in NODE_STATES else [*words, "the api's"]


def _yes(value: bool) -> str:
    return "yes" if value else "no"
