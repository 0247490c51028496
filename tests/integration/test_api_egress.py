"""A sandbox's policy through the api: given at create, read, replaced, explained."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from api.reconcilers import policies
from api_stand import Stand, api, until

ALLOW = {"mode": "allowlist", "allow": ["Example.com", "10.9.0.0/24:5432", "*.cdn.test"], "deny": ["bad.cdn.test"]}
CANONICAL = {
    "mode": "allowlist",
    "allow": ["example.com", "10.9.0.0/24:5432", "*.cdn.test"],
    "deny": ["bad.cdn.test"],
    "inject": [],
    "limits": {
        "connections": 1024,
        "new_connections_per_second": 200,
        "up_bytes_per_second": None,
        "down_bytes_per_second": None,
    },
}


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncGenerator[Stand]:
    async with api(tmp_path) as running:
        yield running


def path(sandbox: dict[str, Any], rest: str = "") -> str:
    return f"/v1/sandboxes/{sandbox['id']}/egress{rest}"


async def test_a_create_takes_a_whole_policy(stand: Stand) -> None:
    sandbox = await stand.root.create(egress=ALLOW)
    assert sandbox["egress"] == {"mode": "allowlist", "generation": 1, "applied_generation": 1}
    given = stand.node.sandboxes[sandbox["id"]].ensure.spec.egress
    assert given.model_dump() == CANONICAL | {"generation": 1}
    answer = await stand.root.call("GET", path(sandbox))
    got = answer.expect(200)
    assert answer.headers["ETag"] == '"1"'
    assert got.pop("applied_at") is not None
    assert got == {"policy": CANONICAL, "generation": 1, "applied_generation": 1, "state": "applied"}


async def test_without_one_it_is_the_projects(tmp_path: Path) -> None:
    async with api(tmp_path, default_egress="blocked") as stand:
        sandbox = await stand.root.create()
        assert (await stand.root.call("GET", path(sandbox))).expect(200)["policy"]["mode"] == "blocked"


async def test_a_put_replaces_the_policy_and_says_what_it_ended(stand: Stand) -> None:
    sandbox = await stand.root.create(egress={"mode": "open"})
    answer = await stand.root.call("PUT", path(sandbox), ALLOW)
    put = answer.expect(200)
    assert (put["generation"], put["applied_generation"], put["state"]) == (2, 2, "applied")
    assert put["policy"] == CANONICAL
    assert put["closed_connections"] == 3
    assert answer.headers["ETag"] == '"2"'
    assert [spec.generation for spec in stand.node.egress_puts] == [2]
    after = await stand.root.get(sandbox["id"])
    assert after["egress"] == {"mode": "allowlist", "generation": 2, "applied_generation": 2}
    assert after["generation"] == sandbox["generation"]


async def test_the_same_again_keeps_its_number(stand: Stand) -> None:
    sandbox = await stand.root.create(egress=ALLOW)
    put = (await stand.root.call("PUT", path(sandbox), CANONICAL)).expect(200)
    assert (put["generation"], put["closed_connections"]) == (1, 0)
    assert stand.node.egress_puts == []


async def test_a_put_may_name_the_policy_that_it_replaces(stand: Stand) -> None:
    sandbox = await stand.root.create()
    match = {"If-Match": '"1"'}
    (await stand.root.call("PUT", path(sandbox), ALLOW, headers=match)).expect(200)
    problem = (await stand.root.call("PUT", path(sandbox), {"mode": "open"}, headers=match)).expect(412)
    assert (problem["code"], problem["generation"]) == ("generation_mismatch", 2)


@pytest.mark.parametrize(
    ("policy", "errors"),
    [
        ({"mode": "allowlist", "allow": ["a b", "ok.example", "::1"]}, {"/allow/0": "characters", "/allow/2": "ipv6"}),
        ({"mode": "open", "allow": ["a.example"]}, {"/allow": "mode"}),
        ({"mode": "blocked", "deny": ["a.example"]}, {"/deny": "mode"}),
        ({"mode": "allowlist", "allow": ["a.example"] * 200, "deny": ["b.example"] * 60}, {"": "too_many"}),
    ],
)
async def test_what_is_no_policy_is_refused_in_every_place(
    stand: Stand, policy: dict[str, Any], errors: dict[str, str]
) -> None:
    sandbox = await stand.root.create()
    calls = {
        "": await stand.root.call("PUT", path(sandbox), policy),
        "/egress": await stand.root.call("POST", "/v1/sandboxes", {"egress": policy}),
        "/policy": await stand.root.call(
            "POST", path(sandbox, "/explain"), {"destination": "a.example:443", "policy": policy}
        ),
    }
    for prefix, answer in calls.items():
        problem = answer.expect(422)
        assert problem["code"] == "invalid_policy"
        assert {row["path"]: row["code"] for row in problem["errors"]} == {
            prefix + where: code for where, code in errors.items()
        }
    assert stand.node.egress_puts == []


async def test_what_could_not_be_applied_is_closed_until_it_is(stand: Stand) -> None:
    sandbox = await stand.root.create(egress={"mode": "open"})
    stand.node.switch.close_egress = 1
    problem = (await stand.root.call("PUT", path(sandbox), ALLOW)).expect(503)
    assert (problem["code"], problem["retryable"]) == ("egress_not_applied", True)
    got = (await stand.root.call("GET", path(sandbox))).expect(200)
    assert (got["state"], got["generation"], got["applied_generation"]) == ("closed", 2, 1)
    put = (await stand.root.call("PUT", path(sandbox), ALLOW)).expect(200)
    assert (put["state"], put["generation"], put["applied_generation"]) == ("applied", 2, 2)


async def test_a_change_whose_answer_was_lost_is_made_up_for(stand: Stand) -> None:
    sandbox = await stand.root.create(egress={"mode": "open"})
    stand.node.switch.die = 2  # a lost PUT is sent once more by itself
    (await stand.root.call("PUT", path(sandbox), ALLOW)).expect(503)
    assert (await stand.root.call("GET", path(sandbox))).expect(200)["state"] == "applying"
    await policies.apply_again(stand.platform)
    asked = len(stand.node.egress_puts)
    stand.clock.ahead_seconds += 60
    await policies.apply_again(stand.platform)
    await until(lambda: len(stand.node.egress_puts) > asked)
    assert {spec.generation for spec in stand.node.egress_puts} == {2}
    async with asyncio.timeout(20):
        while (await stand.root.call("GET", path(sandbox))).expect(200)["state"] != "applied":  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_report_says_which_policy_is_true(stand: Stand) -> None:
    sandbox = await stand.root.create(egress={"mode": "open"})
    held = stand.node.sandboxes[sandbox["id"]]
    held.report = held.report.model_copy(update={"egress_closed": True})
    await stand.node.send_report()
    assert (await stand.root.call("GET", path(sandbox))).expect(200)["state"] == "closed"


async def test_an_ended_sandbox_shows_its_policy_and_takes_no_other(stand: Stand) -> None:
    sandbox = await stand.root.create(egress=ALLOW)
    (await stand.root.call("DELETE", f"/v1/sandboxes/{sandbox['id']}")).expect(200)
    assert (await stand.root.call("GET", path(sandbox))).expect(200)["policy"] == CANONICAL
    assert (await stand.root.call("PUT", path(sandbox), {"mode": "open"})).expect(410)["code"] == "sandbox_ended"


async def test_explain_asks_the_node_and_changes_nothing(stand: Stand) -> None:
    sandbox = await stand.root.create(egress=ALLOW)

    async def explain(destination: str, **more: Any) -> dict[str, Any]:
        body = {"destination": destination, **more}
        return (await stand.root.call("POST", path(sandbox, "/explain"), body)).expect(200)

    allowed = await explain("a.cdn.test:443")
    assert allowed == {"verdict": "allow", "source": "policy", "rule": "*.cdn.test", "reason": None, "hint": None}
    denied = await explain("BAD.cdn.test.:443")
    assert (denied["verdict"], denied["rule"], denied["reason"]) == ("deny", "bad.cdn.test", "denied_by_rule")
    assert denied["hint"]
    private = await explain("10.9.0.1:5432")
    assert (private["source"], private["reason"]) == ("platform", "private_address")
    node = await explain("45.33.8.2:443", policy={"mode": "open"})
    assert (node["source"], node["rule"]) == ("platform", "platform_node")
    assert (await explain("8.8.8.8:443", policy={"mode": "open"}))["verdict"] == "allow"
    assert stand.node.egress_puts == []
    for wrong in ("example.com", "a b:1", "example.com:0", ""):
        body = {"destination": wrong}
        problem = (await stand.root.call("POST", path(sandbox, "/explain"), body)).expect(422)
        assert [error["path"] for error in problem["errors"]] == ["/destination"]


async def test_explain_needs_no_node_once_it_has_ended(stand: Stand) -> None:
    sandbox = await stand.root.create(egress=ALLOW)
    (await stand.root.call("DELETE", f"/v1/sandboxes/{sandbox['id']}")).expect(200)
    body = {"destination": "example.com:443"}
    assert (await stand.root.call("POST", path(sandbox, "/explain"), body)).expect(200)["verdict"] == "allow"


async def test_scopes(stand: Stand) -> None:
    sandbox = await stand.root.create()
    project = sandbox["project_id"]
    reader = stand.with_key(await stand.new_key("egress:read", project=project))
    other = stand.with_key(await stand.new_key("sandboxes", project=project))
    (await reader.call("GET", path(sandbox))).expect(200)
    (await reader.call("POST", path(sandbox, "/explain"), {"destination": "a.example:1"})).expect(200)
    assert (await reader.call("PUT", path(sandbox), ALLOW)).expect(403)["required_scope"] == "egress:write"
    (await other.call("GET", path(sandbox))).expect(403)
