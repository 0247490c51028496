"""Bodies and paths of process calls."""

import base64
import codecs
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from enum import Enum
from typing import Any
from urllib.parse import quote

from sandlot.ids import new_process_id
from sandlot.models import Frame


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
    with_secrets: bool = True,
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
    given = {
        "env": dict(env) if env else None,
        "cwd": cwd,
        "user": user,
        "with_secrets": None if with_secrets else False,
    }
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


def asked(name: str, value: Any) -> dict[str, Any]:
    """Return a field unless it is left to the server; None is a value here.

    >>> asked("n", 5), asked("n", None), asked("n", Default.OF_SERVER)
    ({'n': 5}, {'n': None}, {})
    """
    return {} if value is Default.OF_SERVER else {name: value}


def iso(at: datetime | None) -> str | None:
    """Return a time as the API writes it; one without a zone is local time."""
    return None if at is None else at.astimezone(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Relay:
    """Hands output on as text, a character cut by a frame's border in one piece."""

    def __init__(self, on_stdout: Callable[[str], object] | None, on_stderr: Callable[[str], object] | None) -> None:
        make = codecs.getincrementaldecoder("utf-8")
        targets = {"stdout": on_stdout, "stderr": on_stderr}
        self._channels = {kind: (make("replace"), call) for kind, call in targets.items() if call is not None}

    def take(self, frame: Frame) -> None:
        self._pass_on(frame.kind, frame.data, final=False)

    def finish(self) -> None:
        """Hand on what was left of a character."""
        for kind in self._channels:
            self._pass_on(kind, b"", final=True)

    def _pass_on(self, kind: str, data: bytes, *, final: bool) -> None:
        if kind in self._channels:
            decoder, call = self._channels[kind]
            text = decoder.decode(data, final)
            if text:
                call(text)


def segment(text: str) -> str:
    """Return `text` as one segment of a path, whatever it holds.

    >>> segment("sbx/../x")
    'sbx%2F..%2Fx'
    """
    return quote(text, safe="")


def policy_of(
    policy: str | Mapping[str, Any] | None,
    *,
    allow: Sequence[str] | None = None,
    deny: Sequence[str] | None = None,
    limits: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return an egress policy as the API takes it: a mode, a whole one, or an allowlist of `allow`."""
    body = {"mode": policy or "allowlist"} if policy is None or isinstance(policy, str) else dict(policy)
    lists = {"allow": allow, "deny": deny}
    body |= {name: list(rules) for name, rules in lists.items() if rules is not None}
    return body if limits is None else body | {"limits": dict(limits)}
