"""`POST /v1/run`: a sandbox for one command. It is gone afterwards, whatever happened."""

import asyncio
import base64
import binascii
from typing import Any, Final

import aiohttp
from pydantic_core import from_json, to_json
from yarl import URL

from api.services import creation, stopping
from api.services.creation import Start
from api.services.identity import Caller
from api.services.node_client import NodeProblemError, NodeUnreachableError
from api.services.platform import Platform
from api.services.requests import MAX_FILES_BYTES, RunFile, RunOnce
from api.services.sandboxes import data_plane_address, node_unreachable
from api.store import idempotency as key_store
from api.store.idempotency import Key
from api.store.tables import Sandbox
from sandboxd.contract.problems import CODES, MEDIA_TYPE, ProblemError
from sandboxd.contract.validation import invalid_field

_STOP_SECONDS: Final = 30.0
_HTTP_OK: Final = frozenset({200, 201})


def decode_files(files: list[RunFile]) -> list[tuple[str, bytes]]:
    """Return paths and contents. Raises `invalid_request`, `body_too_large`."""
    decoded: list[tuple[str, bytes]] = []
    for index, file in enumerate(files):
        if "\0" in file.path:
            raise invalid_field(f"/files/{index}/path", "value_error", "must not contain NUL")
        try:
            data = file.text.encode() if file.text is not None else base64.b64decode(file.base64 or "", validate=True)
        except (binascii.Error, ValueError):
            raise invalid_field(f"/files/{index}/base64", "value_error", "is not base64") from None
        decoded.append((file.path, data))
    if sum(len(data) for _, data in decoded) > MAX_FILES_BYTES:
        raise ProblemError("body_too_large", "The files are too large.", limit_bytes=MAX_FILES_BYTES)
    return decoded


async def run_once(platform: Platform, caller: Caller, body: RunOnce, key: Key | None) -> tuple[bytes, bool]:
    """Create, put the files, run, delete. Returns the rendered result, and whether it is a replay."""
    files = decode_files(body.files)
    begun = await creation.begin(platform, caller, body, key, one_shot=True)
    if begun.start is None or begun.task is None:
        return _replay(platform, begun.sandbox), True
    start = begun.start
    try:
        await _running(start, begun.task, body.wait_seconds)
        result = await _run(platform, caller, start.sandbox, files, body)
        ended = await _dispose(platform, caller, start)
    except BaseException:
        platform.background.start(_abandon(platform, caller, start, key))
        raise
    rendered = to_json(result | {"sandbox_id": ended.id, "sandbox_reason": ended.reason})
    if key is not None:
        platform.run_results.keep(ended.id, rendered)
        await platform.database.write(key_store.finish, caller.project_id, key, status=200)
    return rendered, False


def _replay(platform: Platform, sandbox: Sandbox) -> bytes:
    result = platform.run_results.get(sandbox.id)
    if result is None:
        raise ProblemError(
            "sandbox_ended",
            "This run was carried out; its output is no longer held.",
            hint="Use a new Idempotency-Key to run it again.",
            reason=sandbox.reason,
            state=sandbox.state,
            sandbox_id=sandbox.id,
        )
    return result


async def _running(start: Start, task: asyncio.Task[creation.Outcome | None], wait_seconds: float) -> None:
    await asyncio.wait({task}, timeout=wait_seconds)
    outcome = task.result() if task.done() else None
    if outcome is None:
        raise ProblemError(
            "deadline_exceeded", f"The sandbox did not start within {wait_seconds:g} s.", sandbox_id=start.sandbox.id
        )
    if outcome.problem is not None:
        raise outcome.problem
    start.sandbox = outcome.sandbox


async def _run(
    platform: Platform, caller: Caller, sandbox: Sandbox, files: list[tuple[str, bytes]], body: RunOnce
) -> dict[str, Any]:
    address = await data_plane_address(platform, caller, sandbox.id, wait_seconds=0)
    base = f"http://node/v1/sandboxes/{sandbox.id}"
    for path, data in files:
        url = URL(base + "/files").with_query({"path": path})
        await _call(platform, sandbox, address, "PUT", url, data, "application/octet-stream")
    command = body.command.model_dump_json(exclude_unset=True).encode()
    answer = await _call(platform, sandbox, address, "POST", URL(base + "/run"), command, "application/json")
    return from_json(answer)


async def _call(
    platform: Platform, sandbox: Sandbox, address: str, method: str, url: URL, data: bytes, kind: str
) -> bytes:
    try:
        async with platform.nodes.session(address).request(
            method, url, data=data, headers={"Content-Type": kind, "Accept": "application/json"}
        ) as answer:
            payload = await answer.read()
    except (aiohttp.ClientError, OSError) as error:
        raise node_unreachable(sandbox) from error
    if answer.status in _HTTP_OK:
        return payload
    if answer.content_type == MEDIA_TYPE and (problem := from_json(payload)).get("code") in CODES:
        raise NodeProblemError(problem).problem(sandbox_id=sandbox.id)
    raise node_unreachable(sandbox) from NodeUnreachableError(f"answered {answer.status}", sent=True)


async def _dispose(platform: Platform, caller: Caller, start: Start) -> Sandbox:
    return await stopping.delete(
        platform, caller, start.sandbox.id, grace_seconds=0, wait_seconds=_STOP_SECONDS, match=None
    )


async def _abandon(platform: Platform, caller: Caller, start: Start, key: Key | None) -> None:
    """Remove what a failed run left, and free its key: it had no lasting effect."""
    if key is not None:
        await platform.database.write(key_store.release, caller.project_id, key)
    try:
        await _dispose(platform, caller, start)
    except ProblemError:  # no node had taken it, so there is no record
        return
