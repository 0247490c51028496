"""Bodies and paths of process calls."""

import base64
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any
from urllib.parse import quote

from sandlot.ids import new_process_id


class Default(Enum):
    """Says "as the server likes it" where None means "none"."""

    OF_SERVER = "default"


def command_body(
    command: str | Sequence[str],
    *,
    env: Mapping[str, str] | None,
    cwd: str | None,
    user: str | None,
    process_id: str | None = None,
) -> dict[str, Any]:
    """Return what run and start share. The id is made here, so that a repeated call joins the process.

    >>> command_body("echo hi", env=None, cwd=None, user=None, process_id="prcabcdefghij234567abcd")
    {'id': 'prcabcdefghij234567abcd', 'shell': 'echo hi'}
    """
    body: dict[str, Any] = {"id": process_id or new_process_id()}
    if isinstance(command, str):
        body["shell"] = command
    else:
        body["argv"] = list(command)
    given = {"env": dict(env) if env else None, "cwd": cwd, "user": user}
    return body | {name: value for name, value in given.items() if value is not None}


def encode_input(data: str | bytes | None) -> dict[str, str]:
    """Return the field that carries standard input.

    >>> encode_input(b"hi"), encode_input("hi"), encode_input(None)
    ({'input_base64': 'aGk='}, {'input': 'hi'}, {})
    """
    if data is None:
        return {}
    if isinstance(data, bytes):
        return {"input_base64": base64.b64encode(data).decode()}
    return {"input": data}


def segment(text: str) -> str:
    """Return `text` as one segment of a path, whatever it holds.

    >>> segment("sbx/../x")
    'sbx%2F..%2Fx'
    """
    return quote(text, safe="")
