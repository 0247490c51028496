"""Many sandboxes deleted by one call."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from api_stand import Stand, api

PATH = "/v1/sandboxes/delete"


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncGenerator[Stand]:
    async with api(tmp_path) as stand:
        yield stand


async def _delete(stand: Stand, dry_run: bool = False, **wanted: Any) -> dict[str, Any]:
    return (await stand.root.call("POST", PATH, {"filter": wanted, "dry_run": dry_run})).expect(202)


async def test_what_matches_is_deleted_and_nothing_else(stand: Stand) -> None:
    jobs = [await stand.root.create(metadata={"team": "a", "n": str(number)}) for number in range(3)]
    other = await stand.root.create(metadata={"team": "b"})
    ids = [sandbox["id"] for sandbox in jobs]
    assert await _delete(stand, metadata={"team": "a"}) == {"matched": 3, "sandbox_ids": ids}
    for sandbox_id in ids:
        ended = await stand.root.reach(sandbox_id, "stopped")
        assert (ended["desired_state"], ended["reason"]) == ("stopped", "requested")
    assert (await stand.root.get(other["id"]))["desired_state"] == "running"
    assert await _delete(stand, metadata={"team": "a"}) == {"matched": 0, "sandbox_ids": []}


async def test_a_dry_run_only_says_what_would_be_deleted(stand: Stand) -> None:
    sandbox = await stand.root.create()
    said = await _delete(stand, dry_run=True, state=["running"])
    assert said == {"matched": 1, "sandbox_ids": [sandbox["id"]]}
    assert (await stand.root.get(sandbox["id"]))["desired_state"] == "running"


async def test_all_of_a_filter_must_match(stand: Stand) -> None:
    sandbox = await stand.root.create(metadata={"a": "1"})
    image, made = sandbox["image"]["id"], sandbox["created_at"]
    nothing: dict[str, Any] = {"matched": 0, "sandbox_ids": []}
    assert await _delete(stand, image_id=image, created_before=made) == nothing
    assert await _delete(stand, state=["paused", "lost"]) == nothing
    assert await _delete(stand, metadata={"a": "1"}, image_id="img" + "a" * 20) == nothing
    both = await _delete(stand, dry_run=True, image_id=image, state=["running", "lost"], metadata={"a": "1"})
    assert both["matched"] == 1


@pytest.mark.parametrize("wanted", [{}, {"metadata": {}}, {"state": None}])
async def test_a_filter_that_matches_everything_is_refused(stand: Stand, wanted: dict[str, Any]) -> None:
    sandbox = await stand.root.create()
    refused = (await stand.root.call("POST", PATH, {"filter": wanted})).expect(422)
    assert refused["code"] == "filter_required"
    assert (await stand.root.get(sandbox["id"]))["desired_state"] == "running"


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, "/filter"),
        ({"filter": {"name": "x"}}, "/filter/name"),
        ({"filter": {"state": ["stopped"]}}, "/filter/state/0"),
        ({"filter": {"state": "running"}}, "/filter/state"),
        ({"filter": {"created_before": "yesterday"}}, "/filter/created_before"),
        ({"filter": {"image_id": "base"}}, "/filter/image_id"),
        ({"filter": {"state": ["running"]}, "dry_run": "no"}, "/dry_run"),
    ],
)
async def test_bad_filters_name_their_place(stand: Stand, body: dict[str, Any], path: str) -> None:
    refused = (await stand.root.call("POST", PATH, body)).expect(422)
    assert refused["code"] == "invalid_request"
    assert [error["path"] for error in refused["errors"]] == [path]


async def test_another_projects_sandboxes_never_match(stand: Stand) -> None:
    sandbox = await stand.root.create()
    stranger = stand.with_key(await stand.new_key())
    answer = await stranger.call("POST", PATH, {"filter": {"state": ["running"]}})
    assert answer.expect(202) == {"matched": 0, "sandbox_ids": []}
    reader = stand.with_key(await stand.new_key("sandboxes:read"))
    assert (await reader.call("POST", PATH, {"filter": {"state": ["running"]}})).status == 403
    assert (await stand.root.get(sandbox["id"]))["desired_state"] == "running"


async def test_more_than_are_told_at_once_all_end(stand: Stand) -> None:
    many = [await stand.root.create(metadata={"many": "yes"}) for _ in range(20)]
    assert (await _delete(stand, metadata={"many": "yes"}))["matched"] == 20
    for sandbox in many:
        await stand.root.reach(sandbox["id"], "stopped")
