"""Commands as a guest takes them, from commands as clients give them. Pure."""

import base64
import binascii
from typing import Any, Final

from sandboxd.contract.problems import ProblemError
from sandboxd.contract.processes import MAX_ARGUMENT_BYTES, MAX_ARGV_BYTES, CommandSpec, ProcessSpec, RunSpec
from sandboxd.contract.validation import invalid_field

_FIELDS: Final = ("env", "cwd", "user", "merge_stderr", "timeout_seconds", "kill_grace_seconds", "tag")


def guest_spec(spec: ProcessSpec | RunSpec, process_id: str, shell: str | None) -> dict[str, Any]:
    """Return the GuestProcessSpec of a command. Raises `no_shell`, `argument_too_long`, `invalid_request`."""
    if spec.shell is not None and shell is None:
        raise ProblemError("no_shell", "The image has no shell.", hint="Give argv instead of shell.")
    _check_sizes(spec)
    made: dict[str, Any] = {"id": process_id}
    made |= {"shell": spec.shell} if spec.argv is None else {"argv": spec.argv}
    made |= {name: getattr(spec, name) for name in _FIELDS}
    if not spec.with_secrets:
        # Said only where it differs: the guests of sandboxes that an older agent started do not know it.
        made["with_secrets"] = False
    if isinstance(spec, RunSpec):
        made |= {"stdin": False, "tty": None, "output": {"mode": "ring", "ring_bytes": 4_194_304, "limit_bytes": None}}
        given = _input(spec)
        return made if given is None else made | {"input_base64": base64.b64encode(given).decode()}
    tty = None if spec.tty is None else spec.tty.model_dump()
    return made | {"stdin": spec.stdin, "tty": tty, "output": spec.output.model_dump()}


def _input(spec: RunSpec) -> bytes | None:
    if spec.input is not None:
        return spec.input.encode()
    if spec.input_base64 is None:
        return None
    try:
        return base64.b64decode(spec.input_base64, validate=True)
    except (binascii.Error, ValueError):
        raise invalid_field("/input_base64", "base64", "is not base64 (standard alphabet, padded)") from None


def _check_sizes(spec: CommandSpec) -> None:
    arguments = [spec.shell] if spec.shell is not None else spec.argv or []
    sizes = [len(argument.encode()) for argument in arguments]
    if max(sizes, default=0) > MAX_ARGUMENT_BYTES:
        raise _too_long("An argument", MAX_ARGUMENT_BYTES)
    if sum(sizes) + len(sizes) > MAX_ARGV_BYTES:
        raise _too_long("The arguments together", MAX_ARGV_BYTES)
    variables = [len(name.encode()) + len(value.encode()) + 2 for name, value in spec.env.items()]
    if max(variables, default=0) > MAX_ARGUMENT_BYTES + 1:
        raise _too_long("A variable of env", MAX_ARGUMENT_BYTES)
    if sum(variables) > MAX_ARGV_BYTES:
        raise _too_long("env as a whole", MAX_ARGV_BYTES)


def _too_long(what: str, limit_bytes: int) -> ProblemError:
    return ProblemError(
        "argument_too_long",
        f"{what} is longer than {limit_bytes} bytes.",
        hint="Pass long data by stdin, input or a file.",
        limit_bytes=limit_bytes,
    )
