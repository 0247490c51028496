"""Entrypoints as callers see them: asked for, shown, refused."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from api_stand import Stand, api
from sandboxd.contract.ids import entrypoint_process_id
from sandboxd.contract.reasons import SandboxReason
from sandboxd.contract.states import SandboxState


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncGenerator[Stand]:
    async with api(tmp_path) as running:
        yield running


async def test_an_entrypoint_is_passed_on_and_shown(stand: Stand) -> None:
    sandbox = await stand.root.create(entrypoint=["python3", "-m", "http.server"])
    assert sandbox["entrypoint"] == ["python3", "-m", "http.server"]
    assert sandbox["entrypoint_process_id"] == entrypoint_process_id(sandbox["id"])
    assert sandbox["exit_code"] is None
    spec = stand.node.sandboxes[sandbox["id"]].ensure.spec
    assert (spec.entrypoint, spec.use_image_entrypoint) == (["python3", "-m", "http.server"], False)


async def test_without_one_there_is_none(stand: Stand) -> None:
    sandbox = await stand.root.create()
    assert (sandbox["entrypoint"], sandbox["entrypoint_process_id"]) == (None, None)


async def test_its_exit_code_is_kept_after_the_end(stand: Stand) -> None:
    sandbox = await stand.root.create(entrypoint=["false"])
    held = stand.node.sandboxes[sandbox["id"]]
    stand.node.end(sandbox["id"], SandboxReason.ENTRYPOINT_EXITED, SandboxState.STOPPED)
    held.report = held.report.model_copy(update={"exit_code": 1})
    await stand.node.send_report()
    ended = await stand.root.get(sandbox["id"])
    assert (ended["state"], ended["reason"], ended["exit_code"]) == ("stopped", "entrypoint_exited", 1)
    assert ended["entrypoint_process_id"] == sandbox["entrypoint_process_id"]


async def test_what_the_image_brought_is_shown(stand: Stand) -> None:
    sandbox = await stand.root.create(use_image_entrypoint=True)
    held = stand.node.sandboxes[sandbox["id"]]
    held.report = held.report.model_copy(update={"entrypoint": ["nginx", "-g", "daemon off;"], "message": "x"})
    await stand.node.send_report()
    shown = await stand.root.get(sandbox["id"])
    assert shown["entrypoint"] == ["nginx", "-g", "daemon off;"]
    assert shown["entrypoint_process_id"] == entrypoint_process_id(sandbox["id"])


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"entrypoint": []}, "/entrypoint"),
        ({"entrypoint": [""]}, "/entrypoint"),
        ({"entrypoint": ["a\0b"]}, "/entrypoint/0"),
        ({"entrypoint": ["a" * 70_000]}, "/entrypoint"),
        ({"entrypoint": "sleep 1"}, "/entrypoint"),
        ({"entrypoint": ["a"], "use_image_entrypoint": True}, ""),
    ],
)
async def test_what_is_no_entrypoint(stand: Stand, body: dict[str, Any], path: str) -> None:
    problem = (await stand.root.call("POST", "/v1/sandboxes", body)).expect(422)
    assert (problem["code"], problem["errors"][0]["path"]) == ("invalid_request", path)


@pytest.mark.parametrize("field", [{"entrypoint": ["a"]}, {"use_image_entrypoint": True}])
async def test_a_run_of_its_own_has_none(stand: Stand, field: dict[str, Any]) -> None:
    body = {"command": {"argv": ["true"]}, **field}
    assert (await stand.root.call("POST", "/v1/run", body)).expect(422)["code"] == "invalid_request"
