"""Secrets through the api: written and never read back, handed only to where they may go."""

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from api_stand import Stand, api, until

VALUE = "correct horse battery staple"


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncGenerator[Stand]:
    async with api(tmp_path) as running:
        yield running


async def put(stand: Stand, name: str = "TOKEN", status: int = 201, **body: Any) -> Any:
    return (await stand.root.call("PUT", f"/v1/secrets/{name}", {"value": VALUE} | body)).expect(status)


async def project(stand: Stand) -> str:
    return (await stand.root.call("GET", "/v1/me")).expect(200)["project"]["id"]


def injecting(host: str = "api.example.com") -> dict[str, Any]:
    entry = {"host": host, "header": "Authorization", "value_from": {"secret": "TOKEN"}, "format": "Bearer {value}"}
    return {"mode": "allowlist", "inject": [entry]}


async def test_a_secret_is_put_and_seen_without_its_value(stand: Stand) -> None:
    made = await put(stand, hosts=["API.Example.com.", "*.example.org", "api.example.com"])
    assert made["version"] == 1
    assert (made["env"], made["hosts"]) == (False, ["*.example.org", "api.example.com"])
    got = (await stand.root.call("GET", "/v1/secrets/TOKEN")).expect(200)
    listed = (await stand.root.call("GET", "/v1/secrets")).expect(200)
    assert listed == {"items": [got], "next_cursor": None}
    assert got == made
    assert "value" not in json.dumps(got)


async def test_only_changes_count_the_version_up(stand: Stand) -> None:
    await put(stand)
    assert (await put(stand, status=200))["version"] == 1
    assert (await put(stand, status=200, value="another"))["version"] == 2
    changed = await put(stand, status=200, value="another", env=True)
    assert (changed["version"], changed["env"]) == (3, True)
    same = await stand.root.call("PUT", "/v1/secrets/TOKEN", {"value_base64": "YW5vdGhlcg==", "env": True})
    assert same.expect(200)["version"] == 3


async def test_secrets_are_listed_by_name_page_by_page(stand: Stand) -> None:
    for name in ("c", "a", "b"):
        await put(stand, name)
    first = (await stand.root.call("GET", "/v1/secrets?limit=2")).expect(200)
    rest = (await stand.root.call("GET", f"/v1/secrets?cursor={first['next_cursor']}")).expect(200)
    assert [row["name"] for row in [*first["items"], *rest["items"]]] == ["a", "b", "c"]
    assert rest["next_cursor"] is None


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"value": VALUE, "value_base64": "eA=="},
        {"value": ""},
        {"value": VALUE + "\0"},
        {"value": VALUE * 3000},
        {"value_base64": "!" + VALUE},
        {"value_base64": "/////w=="},
        {"value": VALUE + "\n", "hosts": ["example.com"]},
        {"value": VALUE, "hosts": ["127.0.0.1"]},
        {"value": VALUE, "hosts": ["*"]},
        {"value": VALUE, "hosts": ["a b"]},
        {"value": [VALUE]},
        {"value": VALUE, "more": 1},
    ],
)
async def test_what_is_no_secret_is_refused_and_not_repeated(stand: Stand, body: dict[str, Any]) -> None:
    answer = await stand.root.call("PUT", "/v1/secrets/TOKEN", body)
    assert answer.expect(422)["code"] == "invalid_request"
    assert VALUE.encode() not in answer.raw
    (await stand.root.call("GET", "/v1/secrets/TOKEN")).expect(404)


@pytest.mark.parametrize("name", ["1a", "a.b", "a%20b", "a" * 65, "%C3%A4"])
async def test_what_is_no_name_is_none(stand: Stand, name: str) -> None:
    answer = await stand.root.call("PUT", f"/v1/secrets/{name}", {"value": VALUE})
    assert answer.expect(422)["errors"][0]["path"] == "path:secret_name"
    for method in ("GET", "DELETE"):
        assert (await stand.root.call(method, f"/v1/secrets/{name}")).expect(404)["code"] == "secret_not_found"


async def test_a_project_has_only_so_many(tmp_path: Path) -> None:
    async with api(tmp_path, max_secrets=1) as stand:
        await put(stand)
        problem = await put(stand, "OTHER", status=403)
        assert (problem["code"], problem["quota"], problem["limit"]) == ("quota_exceeded", "secrets", 1)
        await put(stand, status=200, value="more")


async def test_a_value_lies_nowhere_in_the_open(stand: Stand, tmp_path: Path) -> None:
    await put(stand, env=True)
    await stand.root.create(secret_env={"A": "TOKEN"})
    for path in (tmp_path / "data").rglob("*"):
        if path.is_file():
            assert VALUE.encode() not in path.read_bytes(), path
    assert (tmp_path / "data" / "api" / "secret-keys").stat().st_mode & 0o777 == 0o600


async def test_a_secret_survives_a_restart_of_the_api(tmp_path: Path) -> None:
    async with api(tmp_path) as stand:
        await put(stand, env=True)
    async with api(tmp_path) as stand:
        sandbox = await stand.root.create(secret_env={"A": "TOKEN"})
        assert stand.node.sandboxes[sandbox["id"]].ensure.spec.secret_env == {"A": VALUE}


# secret_env


async def test_a_sandbox_is_made_with_secrets(stand: Stand) -> None:
    await put(stand, env=True)
    sandbox = await stand.root.create(env={"B": "plain"}, secret_env={"A": "TOKEN"})
    spec = stand.node.sandboxes[sandbox["id"]].ensure.spec
    assert (spec.env, spec.secret_env) == ({"B": "plain"}, {"A": VALUE})
    assert VALUE not in json.dumps(sandbox)
    problem = (await stand.root.call("DELETE", "/v1/secrets/TOKEN")).expect(409)
    assert (problem["code"], problem["sandbox_ids"]) == ("in_use", [sandbox["id"]])
    (await stand.root.call("DELETE", f"/v1/sandboxes/{sandbox['id']}")).expect(200)
    (await stand.root.call("DELETE", "/v1/secrets/TOKEN")).expect(204)
    (await stand.root.call("DELETE", "/v1/secrets/TOKEN")).expect(404)


async def test_a_run_has_secrets_too(stand: Stand) -> None:
    await put(stand, env=True)
    body = {"command": {"argv": ["env"]}, "secret_env": {"A": "TOKEN"}}
    (await stand.root.call("POST", "/v1/run", body)).expect(200)
    assert len(stand.node.ensures) == 1


async def test_a_secret_that_may_not_be_a_variable_is_none(stand: Stand) -> None:
    await put(stand, hosts=["example.com"])
    refused = (await stand.root.call("POST", "/v1/sandboxes", {"secret_env": {"A": "TOKEN"}})).expect(422)
    assert refused["errors"][0] == {
        "path": "/secret_env/A",
        "code": "secret_env",
        "message": "secret TOKEN may not be handed out as a variable: its `env` is false",
    }
    absent = (await stand.root.call("POST", "/v1/sandboxes", {"secret_env": {"A": "OTHER"}})).expect(404)
    assert absent["code"] == "secret_not_found"
    assert stand.node.ensures == []


async def test_variables_are_bounded_together(stand: Stand) -> None:
    await put(stand, value="x" * 65_000, env=True)
    asked = {f"V{number}": "TOKEN" for number in range(5)}
    refused = (await stand.root.call("POST", "/v1/sandboxes", {"secret_env": asked})).expect(422)
    assert refused["errors"][0]["path"] == "/secret_env"


async def test_secrets_need_their_own_scope(stand: Stand) -> None:
    await put(stand, env=True, hosts=["*.example.com"])
    sandbox = await stand.root.create()
    client = stand.with_key(await stand.new_key("sandboxes", "egress", project=await project(stand)))
    policy = f"/v1/sandboxes/{sandbox['id']}/egress"
    for method, path, body in (
        ("POST", "/v1/sandboxes", {"secret_env": {"A": "TOKEN"}}),
        ("POST", "/v1/sandboxes", {"egress": injecting()}),
        ("PUT", policy, injecting()),
    ):
        problem = (await client.call(method, path, body)).expect(403)
        assert problem["required_scope"] == "secrets:read"
    reader = stand.with_key(await stand.new_key("sandboxes", "egress", "secrets:read", project=await project(stand)))
    (await reader.call("POST", "/v1/sandboxes", {"secret_env": {"A": "TOKEN"}, "egress": injecting()})).expect(201)
    (await reader.call("PUT", policy, injecting())).expect(200)
    (await reader.call("PUT", "/v1/secrets/TOKEN", {"value": "x"})).expect(403)


async def test_another_projects_secret_does_not_exist(stand: Stand) -> None:
    await put(stand, env=True, hosts=["api.example.com"])
    stranger = stand.with_key(await stand.new_key())
    assert (await stranger.call("GET", "/v1/secrets")).expect(200)["items"] == []
    for method in ("GET", "DELETE"):
        (await stranger.call(method, "/v1/secrets/TOKEN")).expect(404)
    for body in ({"secret_env": {"A": "TOKEN"}}, {"egress": injecting()}):
        assert (await stranger.call("POST", "/v1/sandboxes", body)).expect(404)["code"] == "secret_not_found"
    assert stand.node.ensures == []


# inject


async def test_a_create_gives_its_node_what_the_policy_injects(stand: Stand) -> None:
    await put(stand, hosts=["*.example.com"])
    sandbox = await stand.root.create(egress=injecting())
    given = stand.node.sandboxes[sandbox["id"]].ensure.credentials
    assert given is not None
    assert given.credentials().values == {"TOKEN": VALUE}
    assert f"Sandlot injection CA {await project(stand)}" in subject_of(given.ca_certificate)
    other = await stand.root.create(egress=injecting())
    again = stand.node.sandboxes[other["id"]].ensure.credentials
    assert again is not None
    assert again.ca_certificate == given.ca_certificate
    (await stand.root.call("DELETE", "/v1/secrets/TOKEN")).expect(409)


def subject_of(pem: str) -> str:
    from cryptography import x509  # noqa: PLC0415 - one test looks into a certificate

    return x509.load_pem_x509_certificate(pem.encode()).subject.rfc4514_string()


async def test_a_secret_goes_only_to_its_hosts(stand: Stand) -> None:
    await put(stand, hosts=["api.example.com", "*.example.org"])
    for host in ("example.com", "b.api.example.com", "example.org", "api.example.net"):
        refused = (await stand.root.call("POST", "/v1/sandboxes", {"egress": injecting(host)})).expect(422)
        assert refused["code"] == "invalid_policy"
        assert refused["errors"][0]["path"] == "/egress/inject/0/host"
    assert stand.node.ensures == []
    await stand.root.create(egress=injecting("deep.in.example.org"))


async def test_a_policy_put_gives_its_node_credentials(stand: Stand) -> None:
    await put(stand, hosts=["api.example.com"])
    sandbox = await stand.root.create()
    path = f"/v1/sandboxes/{sandbox['id']}/egress"
    (await stand.root.call("PUT", path, injecting())).expect(200)
    assert values(stand) == {"TOKEN": VALUE}
    (await stand.root.call("DELETE", "/v1/secrets/TOKEN")).expect(409)
    (await stand.root.call("PUT", path, {"mode": "blocked"})).expect(200)
    assert stand.node.egress_credentials[-1] is None
    (await stand.root.call("DELETE", "/v1/secrets/TOKEN")).expect(204)
    assert (await stand.root.call("PUT", path, injecting())).expect(404)["code"] == "secret_not_found"
    assert (await stand.root.call("GET", path)).expect(200)["policy"]["mode"] == "blocked"


def values(stand: Stand) -> Any:
    given = stand.node.egress_credentials[-1]
    return None if given is None else dict(given.credentials().values)


async def test_a_new_value_reaches_live_sandboxes(stand: Stand) -> None:
    await put(stand, hosts=["api.example.com"])
    sandbox = await stand.root.create(egress=injecting())
    other = await stand.root.create()
    await put(stand, status=200, value="newer", hosts=["api.example.com"])
    await until(lambda: bool(stand.node.egress_credentials))
    assert values(stand) == {"TOKEN": "newer"}
    policy = (await stand.root.call("GET", f"/v1/sandboxes/{sandbox['id']}/egress")).expect(200)
    assert policy["generation"] == 2
    assert (await stand.root.call("GET", f"/v1/sandboxes/{other['id']}/egress")).expect(200)["generation"] == 1


async def test_a_host_that_is_taken_away_gets_nothing_more(stand: Stand) -> None:
    await put(stand, hosts=["api.example.com"])
    await stand.root.create(egress=injecting())
    await put(stand, status=200, hosts=["other.example.com"])
    await until(lambda: bool(stand.node.egress_credentials))
    assert values(stand) == {}


async def test_a_node_that_lacks_credentials_is_told_again(stand: Stand) -> None:
    await put(stand, hosts=["api.example.com"])
    sandbox = await stand.root.create(egress=injecting())
    held = stand.node.sandboxes[sandbox["id"]]
    held.report = held.report.model_copy(update={"credentials_missing": True})
    await stand.node.send_report()
    await until(lambda: bool(stand.node.egress_credentials))
    assert values(stand) == {"TOKEN": VALUE}
    assert stand.node.egress_puts[-1].generation == 1


# Images


async def test_a_registrys_password_goes_to_the_node_and_is_not_recorded(stand: Stand, tmp_path: Path) -> None:
    await put(stand, hosts=["registry.example.com"])
    registry = {"reference": "registry.example.com:5000/app:1", "username": "me", "password_secret": "TOKEN"}
    for wrong in ({"username": None}, {"password_secret": None}):
        (await stand.root.call("POST", "/v1/images", {"registry": registry | wrong})).expect(422)
    elsewhere = registry | {"reference": "elsewhere.example.com/app:1"}
    refused = (await stand.root.call("POST", "/v1/images", {"registry": elsewhere})).expect(422)
    assert refused["errors"][0]["path"] == "/registry/password_secret"
    key = await stand.new_key("images", project=await project(stand))
    denied = await stand.with_key(key).call("POST", "/v1/images", {"registry": registry})
    assert denied.expect(403)["required_scope"] == "secrets:read"
