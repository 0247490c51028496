"""Tunnels over HTTP: asked for once, shown as the node has them, closed, and never more than was asked for."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from api_stand import Stand, api
from sandboxd.contract.reasons import SandboxReason
from sandboxd.contract.tunnels import GUEST_PORT, MAX_TUNNELS

SSH = {"port": 22, "kind": "tcp"}


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncGenerator[Stand]:
    async with api(tmp_path) as running:
        yield running


async def opened(stand: Stand, sandbox_id: str, **spec: Any) -> dict[str, Any]:
    return (await stand.root.call("POST", f"/v1/sandboxes/{sandbox_id}/tunnels", SSH | spec)).expect(201)


async def listed(stand: Stand, sandbox_id: str) -> list[dict[str, Any]]:
    return (await stand.root.call("GET", f"/v1/sandboxes/{sandbox_id}/tunnels")).expect(200)["items"]


async def test_a_tunnel_says_where_to_connect(stand: Stand) -> None:
    sandbox = await stand.root.create()
    tunnel = await opened(stand, sandbox["id"], allow_cidrs=["192.0.2.1", "198.51.100.0/24"])
    assert tunnel["id"].startswith("tun")
    assert {**tunnel, "id": "", "created_at": ""} == {
        "id": "",
        "sandbox_id": sandbox["id"],
        "port": 22,
        "kind": "tcp",
        "visibility": "public",
        "allow_cidrs": ["192.0.2.1/32", "198.51.100.0/24"],
        "server_name": None,
        "state": "open",
        "reason": None,
        "message": None,
        "host": "node.test",
        "public_port": 20001,
        "url": None,
        "path_url": None,
        "in_bytes": 7,
        "out_bytes": 0,
        "created_at": "",
    }
    path = f"/v1/sandboxes/{sandbox['id']}/tunnels/{tunnel['id']}"
    stand.node.tunnels.message = "bound to loopback"
    assert (await stand.root.call("GET", path)).expect(200) == tunnel | {"message": "bound to loopback"}
    [shown] = (await stand.root.get(sandbox["id"]))["tunnels"]
    assert (shown["id"], shown["public_port"]) == (tunnel["id"], 20001)


async def test_the_same_again_is_the_same_and_other_settings_are_refused(stand: Stand) -> None:
    sandbox = await stand.root.create()
    path = f"/v1/sandboxes/{sandbox['id']}/tunnels"
    first = await opened(stand, sandbox["id"])
    assert (await stand.root.call("POST", path, SSH)).expect(200) == first
    refused = (await stand.root.call("POST", path, SSH | {"allow_cidrs": ["10.0.0.0/8"]})).expect(409)
    assert (refused["code"], refused["tunnel_id"]) == ("already_exists", first["id"])
    other = (await stand.root.call("POST", path, SSH | {"kind": "udp"})).expect(201)
    assert [each["id"] for each in await listed(stand, sandbox["id"])] == [first["id"], other["id"]]


async def test_at_once_or_with_one_key_it_is_opened_once(stand: Stand) -> None:
    sandbox = await stand.root.create()
    path = f"/v1/sandboxes/{sandbox['id']}/tunnels"
    answers = await asyncio.gather(*(stand.root.call("POST", path, SSH) for _ in range(8)))
    assert sorted(answer.status for answer in answers) == [200] * 7 + [201]
    assert len({answer.body["id"] for answer in answers}) == 1
    key = {"Idempotency-Key": "once"}
    udp = SSH | {"kind": "udp"}
    first = await stand.root.call("POST", path, udp, headers=key)
    again = await stand.root.call("POST", path, udp, headers=key)
    assert (first.status, again.status, again.headers["Idempotency-Replayed"]) == (201, 201, "true")
    assert first.body == again.body
    mismatch = (await stand.root.call("POST", path, SSH | {"port": 23}, headers=key)).expect(422)
    assert mismatch["code"] == "idempotency_mismatch"


async def test_tunnels_of_a_create_are_open_in_its_answer(stand: Stand) -> None:
    asked = [SSH, {"port": 5000, "kind": "udp"}, {"port": None, "kind": "http"}]
    sandbox = await stand.root.create(tunnels=asked)
    assert [(each["kind"], each["port"], each["public_port"]) for each in sandbox["tunnels"]] == [
        ("tcp", 22, 20001),
        ("udp", 5000, 20002),
        ("http", None, None),
    ]
    assert [each["visibility"] for each in sandbox["tunnels"]] == ["public", "public", "token"]
    assert [each["id"] for each in await listed(stand, sandbox["id"])] == [each["id"] for each in sandbox["tunnels"]]


async def test_who_may_use_it_is_changed_whole(stand: Stand) -> None:
    sandbox = await stand.root.create()
    tunnel = await opened(stand, sandbox["id"])
    path = f"/v1/sandboxes/{sandbox['id']}/tunnels/{tunnel['id']}"
    changed = (await stand.root.call("PATCH", path, {"allow_cidrs": ["10.0.0.0/8"]})).expect(200)
    assert changed == tunnel | {"allow_cidrs": ["10.0.0.0/8"]}
    assert stand.node.sandboxes[sandbox["id"]].report.tunnels[0].allow_cidrs == ["10.0.0.0/8"]
    assert (await stand.root.call("PATCH", path, {})).expect(200) == changed
    for body, where in (
        ({"visibility": "token"}, "/visibility"),
        ({"allow_cidrs": ["10.0.0.1/8"]}, "/allow_cidrs/0"),
        ({"port": 23}, "/port"),
    ):
        problem = (await stand.root.call("PATCH", path, body)).expect(422)
        assert [error["path"] for error in problem["errors"]] == [where]


async def test_closed_it_is_gone_and_may_be_opened_anew(stand: Stand) -> None:
    sandbox = await stand.root.create()
    tunnel = await opened(stand, sandbox["id"])
    path = f"/v1/sandboxes/{sandbox['id']}/tunnels/{tunnel['id']}"
    assert (await stand.root.call("DELETE", path)).expect(204) is None
    assert stand.node.sandboxes[sandbox["id"]].report.tunnels == []
    assert (await stand.root.call("DELETE", path)).expect(404)["code"] == "tunnel_not_found"
    assert (await stand.root.get(sandbox["id"]))["tunnels"] == []
    assert (await opened(stand, sandbox["id"]))["id"] != tunnel["id"]


async def test_what_a_node_refuses_leaves_no_record(stand: Stand) -> None:
    sandbox = await stand.root.create()
    stand.node.tunnels.refuse = "no_capacity"
    path = f"/v1/sandboxes/{sandbox['id']}/tunnels"
    assert (await stand.root.call("POST", path, SSH)).expect(503)["code"] == "no_capacity"
    assert await listed(stand, sandbox["id"]) == []
    stand.node.tunnels.refuse = None
    await opened(stand, sandbox["id"])


async def test_a_silent_node_is_asked_again_for_the_same_tunnel(stand: Stand) -> None:
    sandbox = await stand.root.create()
    await stand.node.stop()
    path = f"/v1/sandboxes/{sandbox['id']}/tunnels"
    assert (await stand.root.call("POST", path, SSH)).expect(503)["code"] == "node_unreachable"
    [asked] = await listed(stand, sandbox["id"])
    assert (asked["host"], asked["public_port"]) == (None, None)
    await stand.node.start()
    again = (await stand.root.call("POST", path, SSH)).expect(200)
    assert (again["id"], again["public_port"]) == (asked["id"], 20001)


async def test_of_an_ended_sandbox_nothing_is_open(stand: Stand) -> None:
    sandbox = await stand.root.create()
    tunnel = await opened(stand, sandbox["id"])
    stand.node.end(sandbox["id"], SandboxReason.RUNTIME_FAILED)
    await stand.node.send_report()
    path = f"/v1/sandboxes/{sandbox['id']}/tunnels"
    for method, where, body in (
        ("POST", path, SSH),
        ("GET", path, None),
        ("GET", f"{path}/{tunnel['id']}", None),
        ("PATCH", f"{path}/{tunnel['id']}", {}),
    ):
        assert (await stand.root.call(method, where, body)).expect(410)["code"] == "sandbox_ended"
    assert (await stand.root.get(sandbox["id"]))["tunnels"] == []
    (await stand.root.call("DELETE", f"{path}/{tunnel['id']}")).expect(204)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"port": GUEST_PORT}, "/port"),
        ({"port": GUEST_PORT, "kind": "http"}, "/port"),
        ({"port": GUEST_PORT, "kind": "tls"}, "/port"),
        ({"port": GUEST_PORT, "kind": "udp"}, "/port"),
        ({"port": 0}, "/port"),
        ({"port": 65536}, "/port"),
        ({"port": None}, ""),
        ({"kind": "sctp"}, "/kind"),
        ({"visibility": "token"}, ""),
        ({"server_name": "a.example.com"}, ""),
        ({"kind": "tls", "server_name": "a.example.com"}, "/server_name"),
        ({"kind": "tls", "server_name": "A.example.com"}, "/server_name"),
        ({"allow_cidrs": ["::/0"]}, "/allow_cidrs/0"),
        ({"allow_cidrs": ["10.0.0.0/33"]}, "/allow_cidrs/0"),
        ({"allow_cidrs": ["10.0.0.0/8"] * 65}, "/allow_cidrs"),
        ({"public_port": 22}, "/public_port"),
    ],
)
async def test_bad_tunnels_are_refused_with_their_place(stand: Stand, changes: dict[str, Any], where: str) -> None:
    sandbox = await stand.root.create()
    problem = (await stand.root.call("POST", f"/v1/sandboxes/{sandbox['id']}/tunnels", SSH | changes)).expect(422)
    assert (problem["code"], [error["path"] for error in problem["errors"]]) == ("invalid_request", [where])
    created = await stand.root.call("POST", "/v1/sandboxes", {"tunnels": [SSH | changes]})
    assert created.expect(422)["code"] == "invalid_request"
    assert await listed(stand, sandbox["id"]) == []


@pytest.mark.parametrize(
    ("given", "name", "taken"),
    [
        ("example.com", "a.example.com", True),
        ("example.com", "a.b.example.com", True),
        ("example.com", "example.com", False),
        ("example.com", "a.notexample.com", False),
        ("example.com", "a.other.com", False),
        ("{project}=example.com", "a.example.com", True),
        ("prjaaaaaaaaaaaaaaaaaaaa=example.com", "a.example.com", False),
    ],
)
async def test_a_name_of_its_own_is_below_a_domain_given_to_the_project(
    tmp_path: Path, given: str, name: str, *, taken: bool
) -> None:
    async with api(tmp_path) as stand:
        sandbox = await stand.root.create()
    async with api(tmp_path, tunnel_domains=(given.format(project=sandbox["project_id"]),)) as stand:
        asked = {"port": 443, "kind": "tls", "server_name": name}
        answer = await stand.root.call("POST", "/v1/sandboxes", {"tunnels": [asked]})
        if not taken:
            assert [error["path"] for error in answer.expect(422)["errors"]] == ["/server_name"]
            return
        [tunnel] = answer.expect(201)["tunnels"]
        assert tunnel["server_name"] == name


async def test_two_of_a_kind_to_one_port_are_one_too_many(stand: Stand) -> None:
    answer = await stand.root.call("POST", "/v1/sandboxes", {"tunnels": [SSH, SSH | {"allow_cidrs": ["10.0.0.0/8"]}]})
    assert [error["path"] for error in answer.expect(422)["errors"]] == ["/tunnels"]


async def test_a_sandbox_has_so_many_and_no_more(stand: Stand) -> None:
    sandbox = await stand.root.create(tunnels=[SSH | {"port": 100 + place} for place in range(MAX_TUNNELS)])
    problem = (await stand.root.call("POST", f"/v1/sandboxes/{sandbox['id']}/tunnels", SSH)).expect(422)
    assert str(MAX_TUNNELS) in problem["detail"]


async def test_a_create_with_tunnels_needs_their_scope(stand: Stand) -> None:
    key = await stand.new_key("sandboxes")
    problem = (await stand.with_key(key).call("POST", "/v1/sandboxes", {"tunnels": [SSH]})).expect(403)
    assert problem["required_scope"] == "tunnels:write"
    assert stand.node.ensures == []
