"""Sandbox tokens at the api: what is made, for whom, what it opens there, and what nodes are told."""

import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute

from api.routes import files, ports, processes, sockets
from api.store import identity as identity_store
from api_stand import Answer, Stand, api, until
from sandboxd.contract.trust import GatewayInfo
from tunnels.scopes import need_of
from tunnels.tokens import Verifier, decode, jwk_of, kid_of


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncGenerator[Stand]:
    async with api(tmp_path) as running:
        yield running


async def _make(stand: Stand, sandbox_id: str, key: str | None = None, **body: Any) -> Answer:
    client = stand.root if key is None else stand.with_key(key)
    return await client.call("POST", f"/v1/sandboxes/{sandbox_id}/tokens", {"scopes": ["files"], **body})


async def test_a_create_answers_with_access(stand: Stand) -> None:
    stand.node.gateway = GatewayInfo(url="http://127.0.0.1:7080", domain="localhost", by_path=True)
    await stand.node.send_report()
    made = await stand.root.create(name="mine")
    access = made["access"]
    assert (access["url"], access["scopes"]) == ("http://127.0.0.1:7080", ["processes", "files", "tunnels"])
    found = await stand.root.call("POST", "/v1/sandboxes", {"name": "mine", "if_exists": "return"})
    assert found.expect(200)["access"]["token"] != access["token"]
    assert "access" not in await stand.root.get(made["id"])
    listed = (await stand.root.call("GET", "/v1/sandboxes")).expect(200)
    assert "access" not in listed["items"][0]
    me = (await stand.root.call("GET", "/v1/me")).expect(200)
    assert me["gateway"] == {"domain": "localhost", "url": "http://127.0.0.1:7080"}


async def test_without_a_gateway_there_is_a_token_and_no_address(stand: Stand) -> None:
    access = (await stand.root.create())["access"]
    assert access["url"] is None
    assert access["token"]


async def test_anybody_can_check_a_token(stand: Stand) -> None:
    sandbox = await stand.root.create()
    keys = (await stand.with_key(None).call("GET", "/.well-known/jwks.json")).expect(200)["keys"]
    by = Verifier()
    by.trust(decode(key["x"]) for key in keys)
    said = by.check(sandbox["access"]["token"], now_seconds=time.time())
    assert (said.sbx, said.sub, said.key) == (sandbox["id"], sandbox["project_id"], sandbox["key_id"])
    public = stand.platform.token_keys.public()[0]
    assert keys == [jwk_of(public)]
    assert keys[0]["kid"] == kid_of(public)


async def test_a_token_is_good_for_its_sandbox_alone(stand: Stand) -> None:
    mine, other = [await stand.root.create() for _ in range(2)]
    bearer = stand.with_key(mine["access"]["token"])
    base = f"/v1/sandboxes/{mine['id']}"
    (await bearer.call("GET", f"{base}/processes")).expect(200)
    (await bearer.call("POST", f"{base}/processes", {"argv": ["cat"]})).expect(201)
    assert (await bearer.call("GET", "/v1/me")).expect(200)["caller"]["kind"] == "token"
    for method, path in (
        ("GET", f"/v1/sandboxes/{other['id']}/processes"),
        ("GET", "/v1/sandboxes"),
        ("POST", "/v1/sandboxes"),
        ("POST", "/v1/sandboxes/delete"),
        ("POST", "/v1/run"),
        ("GET", "/v1/keys"),
        ("GET", "/metrics"),
    ):
        problem = (await bearer.call(method, path, {} if method == "POST" else None)).expect(401)
        assert (problem["code"], problem["reason"]) == ("unauthenticated", "wrong_sandbox"), path
    assert (await bearer.call("GET", base)).expect(403)["required_scope"] == "sandboxes:read"
    assert (await bearer.call("POST", f"{base}/tokens", {"scopes": ["files"]})).expect(403)["code"] == "scope_required"


async def test_scopes_are_the_callers_or_fewer(stand: Stand) -> None:
    sandbox = await stand.root.create()
    project = sandbox["project_id"]
    key = await stand.new_key("files:read", "tunnels", project=project)
    refused = (await _make(stand, sandbox["id"], key, scopes=["files"])).expect(403)
    assert refused["required_scope"] == "files"
    token = (await _make(stand, sandbox["id"], key, scopes=["files:read"])).expect(201)
    assert token["scopes"] == ["files:read"]
    bearer = stand.with_key(token["token"])
    path = f"/v1/sandboxes/{sandbox['id']}/files?path=/x"
    assert (await bearer.call("PUT", path, data=b"x")).expect(403)["required_scope"] == "files:write"
    without = await stand.new_key("files", project=project)
    assert (await _make(stand, sandbox["id"], without)).expect(403)["required_scope"] == "tunnels:write"
    reader = await stand.new_key("sandboxes", "files:read", project=project)
    made = await stand.with_key(reader).create()
    assert made["access"]["scopes"] == ["files:read"]
    nothing = await stand.new_key("sandboxes", project=project)
    assert (await stand.with_key(nothing).create())["access"] is None


@pytest.mark.parametrize(
    "body",
    [
        {"scopes": []},
        {"scopes": ["admin"]},
        {"scopes": ["operator"]},
        {"scopes": ["nonsense"]},
        {"expires_in_seconds": 59},
        {"expires_in_seconds": 86_401},
        {"expires_in_seconds": 604_801, "port": 80},
        {"port": 80, "path": "/x"},
        {"port": 0},
        {"path": "relative"},
        {"identity": {"x": "a" * 1100}},
        {"unknown": 1},
    ],
)
async def test_what_makes_no_sense_is_refused(stand: Stand, body: dict[str, Any]) -> None:
    sandbox = await stand.root.create()
    assert (await _make(stand, sandbox["id"], **body)).status == 422


async def test_bound_tokens_live_longer_and_have_an_address(stand: Stand) -> None:
    stand.node.gateway = GatewayInfo(url="https://gw.example.com:8443", domain="boxes.example.com")
    await stand.node.send_report()
    sandbox = await stand.root.create()
    token = (await _make(stand, sandbox["id"], scopes=["tunnels"], port=80, expires_in_seconds=604_800)).expect(201)
    assert token["url"] == f"https://80-{sandbox['id']}.boxes.example.com:8443/?sandlot_token={token['token']}"
    file = (await _make(stand, sandbox["id"], path="/a b")).expect(201)
    assert file["url"] == (
        f"https://gw.example.com:8443/v1/sandboxes/{sandbox['id']}/files?path=/a%20b&sandlot_token={file['token']}"
    )
    bearer = stand.with_key(file["token"])
    base = f"/v1/sandboxes/{sandbox['id']}"
    (await bearer.call("PUT", f"{base}/files", params={"path": "/a b"}, data=b"x")).expect(201)
    assert (await bearer.call("GET", f"{base}/files?path=/b")).expect(401)["reason"] == "wrong_sandbox"
    assert (await bearer.call("GET", f"{base}/processes")).expect(401)["reason"] == "wrong_sandbox"


async def test_an_expired_token_and_one_of_an_ended_key_open_nothing(stand: Stand) -> None:
    sandbox = await stand.root.create()
    path = f"/v1/sandboxes/{sandbox['id']}/processes"
    soon = await stand.new_key(project=sandbox["project_id"], expires_at=stand.clock.now_us() + 100_000_000)
    token = (await _make(stand, sandbox["id"], soon, scopes=["processes"])).expect(201)["token"]
    bearer = stand.with_key(token)
    (await bearer.call("GET", path)).expect(200)
    stand.clock.ahead_seconds = 101
    assert (await bearer.call("GET", path)).expect(401)["reason"] == "expired"
    tampered = stand.with_key(token[:-10] + "A" * 10)
    assert (await tampered.call("GET", path)).expect(401)["reason"] == "malformed"


async def test_revoking_a_key_is_told_to_nodes_at_once(stand: Stand) -> None:
    sandbox = await stand.root.create()
    key = await stand.new_key("processes", "tunnels", project=sandbox["project_id"])
    made = (await _make(stand, sandbox["id"], key, scopes=["processes"])).expect(201)
    bearer, path = stand.with_key(made["token"]), f"/v1/sandboxes/{sandbox['id']}/processes"
    (await bearer.call("GET", path)).expect(200)
    before = stand.platform.trust.revision
    answer = await stand.node.send_report(trust_revision=before)
    assert answer.trust is None
    await stand.platform.database.write(
        identity_store.revoke_named, sandbox["project_id"], "test", stand.clock.now_us()
    )
    await until(lambda: stand.node.trusts != [])
    told = stand.node.trusts[-1]
    assert told.revision != before
    assert len(told.revoked) == 1
    answer = await stand.node.send_report(trust_revision=before)
    assert answer.trust == told
    stand.clock.ahead_seconds = 2
    assert (await bearer.call("GET", path)).expect(401)["reason"] == "revoked"


async def test_a_replay_is_a_fresh_token_that_says_the_same(stand: Stand) -> None:
    sandbox = await stand.root.create()
    path = f"/v1/sandboxes/{sandbox['id']}/tokens"
    once = {"Idempotency-Key": "once"}
    body = {"scopes": ["files:read"], "port": 8000}
    first = await stand.root.call("POST", path, body, headers=once)
    stand.clock.ahead_seconds = 10
    again = await stand.root.call("POST", path, body, headers=once)
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    by = Verifier()
    by.trust([stand.platform.token_keys.public()[0]])
    said = [by.check(each.expect(201)["token"], now_seconds=time.time() + 10) for each in (first, again)]
    assert [(each.scp, each.port, each.exp - each.iat) for each in said] == [(["files:read"], 8000, 900)] * 2
    assert said[0].jti != said[1].jti
    other = await stand.root.call("POST", path, body | {"port": 8001}, headers=once)
    assert other.expect(422)["code"] == "idempotency_mismatch"
    refused = await stand.root.call("POST", path, {"scopes": ["files"], "path": "/a", "port": 1}, headers=once)
    assert refused.expect(422)["code"] == "idempotency_mismatch"


async def test_another_projects_key_makes_no_token(stand: Stand) -> None:
    sandbox = await stand.root.create()
    stranger = await stand.new_key()
    assert (await _make(stand, sandbox["id"], stranger)).expect(404)["code"] == "sandbox_not_found"


def test_a_token_needs_at_a_node_what_it_needs_at_the_api() -> None:
    """The routes of the api say what scope they need; the table that nodes go by says the same."""
    compared = 0
    for router in (files.router, ports.router, processes.router, sockets.router):
        for route in router.routes:
            assert isinstance(route, APIRoute)
            call = route.path.removeprefix("/v1/sandboxes/{sandbox_id}/").split("/")[0]
            [dependency] = route.dependant.dependencies
            closure = getattr(dependency.call, "__closure__", ())
            names = getattr(dependency.call, "__code__").co_freevars  # noqa: B009 - of a function, which it is
            said = {name: cell.cell_contents for name, cell in zip(names, closure, strict=True)}
            for method in route.methods or ():
                need = need_of(method, call)
                assert need is not None, route.path
                assert (need.area, need.write) == (said["area"], said["write"]), (method, route.path)
                compared += 1
    assert compared > 20
