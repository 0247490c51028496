"""What a guest's bytes may mean: parsing without trust. Pure."""

import hashlib
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import from_json

from sandboxd.contract.problems import ProblemError
from sandboxd.contract.validation import invalid_field
from sandboxd.guest_client.base import GuestError, Health, Init, InitResult

MAX_MESSAGE: Final = 1024
_MAX_MEMBER: Final = 256

Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
Word = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Path = Annotated[str, StringConstraints(min_length=1, max_length=4096)]

_EXTRACTED: Final[dict[str, type]] = {
    f"extracted_{name}": int for name in ("files", "directories", "symlinks", "bytes")
}
_PASSED_ON: Final[dict[str, dict[str, type]]] = {
    "invalid_request": {},
    "process_not_found": {},
    "process_ended": {"exit_code": int, "reason": str},
    "stdin_closed": {},
    "stdin_gap": {"offset": int},
    "seq_out_of_range": {"next_seq": int},
    "argument_too_long": {"limit_bytes": int},
    "user_not_found": {},
    "cwd_not_found": {},
    "no_shell": {},
    "idempotency_mismatch": {},
    "too_many_streams": {"limit": int},
    "invalid_path": {},
    "permission_denied": {},
    "file_not_found": {},
    "is_directory": {},
    "not_a_directory": {},
    "already_exists": {},
    "directory_not_empty": {},
    "in_use": {},
    "generation_mismatch": {"etag": str},
    "range_not_satisfiable": {"size_bytes": int},
    "unsafe_archive": {"entry": str, **_EXTRACTED},
    "malformed_request": {},
    "disk_full": {},
    "port_not_listening": {"port": int},
    "sandbox_not_ready": {},
    "not_implemented": {},
}
"""Codes a client may see from a guest, with their members. Any other one means that the guest is broken."""


class _Hostile(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class _Health(_Hostile):
    version: Word
    protocol: int
    initialized: bool
    processes_running: Count
    last_exit_at_us: Count = 0


class _InitResult(_Hostile):
    user: Word
    uid: Annotated[int, Field(ge=0, le=2**32 - 1)]
    gid: Annotated[int, Field(ge=0, le=2**32 - 1)]
    home: Path
    cwd: Path
    shell: Path | None = None
    version: Word


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in a body. Refuses NaN, infinity, deep nesting and anything that is not UTF-8."""
    try:
        value = from_json(body, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        raise GuestError("the guest's answer is not JSON") from error
    if not isinstance(value, dict):
        raise GuestError("the guest's answer is not a JSON object")
    return value  # pyright: ignore[reportUnknownVariableType] - JSON has string keys


def parse_problem(status: int, body: bytes) -> ProblemError:
    """Return the problem a guest answered; GuestError for a code that no client should see."""
    answer = parse_object(body)
    code, message = answer.get("code"), answer.get("message")
    members = _PASSED_ON.get(code) if isinstance(code, str) else None
    if not isinstance(code, str) or members is None or not isinstance(message, str):
        raise GuestError(f"the guest answered {status} with code {str(code)[:64]!r}")
    message = message[:MAX_MESSAGE]
    if code == "invalid_request":
        return invalid_field("", "refused", message)
    found = {name: _member(answer, name, kind) for name, kind in members.items()}
    reason = found.pop("reason", None)
    problem = ProblemError(code, message, reason=reason if isinstance(reason, str) else None)
    extracted = {name.removeprefix("extracted_"): found.pop(name) for name in _EXTRACTED if name in found}
    problem.members = found | ({"extracted": extracted} if extracted else {})
    if code == "disk_full":
        problem.members["scope"] = "sandbox"
    return problem


def _member(answer: dict[str, Any], name: str, kind: type) -> object:
    value = answer.get(name)
    if type(value) is not kind or (isinstance(value, int) and not 0 <= value < 2**63):
        raise GuestError(f"the guest's error lacks a usable {name}")
    return value[:_MAX_MEMBER] if isinstance(value, str) else value


def parse_health(answer: dict[str, Any]) -> Health:
    """Return the health of an answer."""
    try:
        found = _Health.model_validate(answer)
    except ValidationError as error:
        raise GuestError("the guest's health is not what the protocol says") from error
    if found.protocol != 1:
        raise GuestError(f"the guest speaks protocol {found.protocol}")
    return Health(
        version=found.version,
        initialized=found.initialized,
        processes_running=found.processes_running,
        last_exit_at_us=found.last_exit_at_us,
    )


def parse_init_result(answer: dict[str, Any]) -> InitResult:
    """Return the result of an init."""
    try:
        found = _InitResult.model_validate(answer)
    except ValidationError as error:
        raise GuestError("the guest's init result is not what the protocol says") from error
    return InitResult(
        user=found.user,
        uid=found.uid,
        gid=found.gid,
        home=found.home,
        cwd=found.cwd,
        shell=found.shell,
        version=found.version,
    )


def render_init(init: Init, seed_base64: str) -> dict[str, Any]:
    """Return the body of an init."""
    return {
        "hostname": init.hostname,
        "env": init.env,
        "secret_env": init.secret_env,
        "image_env": init.image_env,
        "user": init.user,
        "cwd": init.cwd,
        "image_user": init.image_user,
        "image_cwd": init.image_cwd,
        "address": init.address,
        "gateway": init.gateway,
        "resolvers": list(init.resolvers),
        "max_processes": init.max_processes,
        "memory_bytes": init.memory_bytes,
        "cpus": init.cpus,
        "now_us": init.now_us,
        "seed_base64": seed_base64,
        "backstop_seconds": init.backstop_seconds,
        "token_sha256": None if init.token is None else hashlib.sha256(init.token.encode()).hexdigest(),
    }
