"""The page of error codes: each with its status and what a caller does about it."""

from typing import Final

from sandboxd.contract.next_steps import NEXT_STEPS
from sandboxd.contract.problems import CODES

_HEAD: Final = """\
# Errors

Drawn from `sandboxd/contract/problems.py` by `python -m infra.reference`; a test holds it to the code.

Every error is `application/problem+json`: `type`, `title`, `status`, `detail` (what happened, with values), `code`
(stable), `reason` where one applies, `hint` (the next call to make), `retryable`, `retry_after_seconds` where known,
`request_id`, and members of its own. `retryable: true` means: send the same request again, unchanged, after
`Retry-After` if given; it had no lasting effect.

A command that fails, is not found, is killed or runs out of time is **not** an error: it is a result with `exit_code`
and `reason` (see [lifecycle](lifecycle.md)). A sandbox or node that cannot serve is always an error.

| code | status | title | retryable | what to do |
|---|---|---|---|---|"""


def page() -> str:
    """Return the page. KeyError names a code that has no next step yet."""
    rows = [
        f"| `{code}` | {row.status} | {row.title} | {'yes' if row.retryable else 'no'} | {NEXT_STEPS[code]} |"
        for code, row in sorted(CODES.items(), key=lambda item: (item[1].status, item[0]))
    ]
    unknown = sorted(set(NEXT_STEPS) - set(CODES))
    if unknown:
        raise KeyError(f"no such codes any more: {', '.join(unknown)}")
    return "\n".join([_HEAD, *rows]) + "\n"
