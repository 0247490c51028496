"""What is wrong with a request, as the `errors` of an `invalid_request` problem."""

from collections.abc import Iterable
from typing import Final

from pydantic import ValidationError

from sandboxd.contract.problems import ProblemError

MAX_ERRORS: Final = 32
"""More than these would help nobody, and an answer must not grow with the request."""


def pointer(location: tuple[int | str, ...]) -> str:
    """Render where a value stands as a JSON pointer; that of a refused name is where its value stands."""
    if location and location[-1] == "[key]":
        location = location[:-1]
    return "".join("/" + str(step)[:256].replace("~", "~0").replace("/", "~1") for step in location)


def invalid(error: ValidationError) -> ProblemError:
    """Return the problem for a body that a model refused: `malformed_request` when it is no JSON at all.

    Values are not repeated: they may be secrets.
    """
    found = error.errors(include_url=False, include_input=False, include_context=False)
    if found and found[0]["type"] == "json_invalid":
        return ProblemError("malformed_request", f"The body is not JSON: {found[0]['msg'][:200]}")
    return invalid_fields(
        {
            "path": pointer(row["loc"]),
            "code": row["type"],
            "message": row["msg"].removeprefix("Value error, ")[:300],
        }
        for row in found[:MAX_ERRORS]
    )


def invalid_fields(errors: Iterable[dict[str, str]]) -> ProblemError:
    """Return the `invalid_request` problem for rows of `{path, code, message}`."""
    rows = list(errors)
    first = rows[0]
    return ProblemError(
        "invalid_request", f"{first['path'] or 'The body'}: {first['message']}", hint="See errors.", errors=rows
    )


def invalid_field(path: str, code: str, message: str) -> ProblemError:
    """Return the `invalid_request` problem for one value; `path` is a pointer, `query:name` or `header:name`."""
    return invalid_fields([{"path": path, "code": code, "message": message}])
