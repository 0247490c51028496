"""Every operation of the public document, tried by those who may not: no key, bad keys, and another project's key.

The list of operations is the document itself: a new operation is tried without anybody remembering it here, and one
that this file does not know how to judge fails.
"""

import json
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Final

import pytest

from api.services import keys
from api.store import images
from api.store.image_tables import Image
from api_stand import Answer, Stand, api
from fake_node import IMAGE
from sandboxd.contract.ids import new_id

DOCUMENT: Final = json.loads((Path(__file__).resolve().parents[2] / "openapi" / "api.json").read_text())
OPERATIONS: Final[list[tuple[str, str]]] = [
    (method, path) for path, methods in DOCUMENT["paths"].items() for method in methods if method != "head"
]
PUBLIC: Final = {("get", "/.well-known/jwks.json"), ("get", "/healthz"), ("get", "/readyz"), ("get", "/errors/{code}")}
OF_THE_CALLER: Final = {
    ("post", "/v1/sandboxes"),
    ("get", "/v1/sandboxes"),
    ("post", "/v1/sandboxes/delete"),
    ("post", "/v1/run"),
    ("get", "/v1/me"),
    ("post", "/v1/images"),
    ("get", "/v1/images"),
    ("get", "/v1/tags"),
    ("put", "/v1/tags/{tag_name}"),
    ("put", "/v1/uploads/{sha256}"),
    ("get", "/v1/secrets"),
    ("put", "/v1/secrets/{secret_name}"),
}
"""These name nothing of anybody else's."""
OF_OPERATORS: Final = {("get", "/metrics")}
LATER: Final = (
    ("GET", "/v1/keys"),
    ("POST", "/v1/projects"),
    ("POST", "/v1/sandboxes/{sandbox_id}/pause"),
)
OF_AN_IMAGE: Final = [(method, path) for method, path in OPERATIONS if "{image_id}" in path or "{tag_name}" in path]
OF_A_SECRET: Final = [("get", "/v1/secrets/{secret_name}"), ("delete", "/v1/secrets/{secret_name}")]
IMAGE_COLLECTIONS: Final = ("images", "tags", "uploads")
FILE_COLLECTIONS: Final = (["files"], ["directories"], ["archive"], ["watch"])
BODIES: Final[dict[str, Any]] = {
    "run": {"argv": ["true"]},
    "processes": {"argv": ["true"]},
    "signal": {"signal": "SIGTERM"},
    "resize": {"rows": 1, "cols": 1},
    "files": {"path": "/tmp/x"},
    "move": {"from": "/tmp/x", "to": "/tmp/y"},
    "extend": {"timeout_seconds": 60},
    "tokens": {"scopes": ["files"]},
    "tunnels": {"port": 80, "kind": "tcp"},
    "{tunnel_id}": {"allow_cidrs": ["192.0.2.0/24"]},
    "egress": {"mode": "blocked"},
    "explain": {"destination": "example.com:443"},
    "{sandbox_id}": {"metadata": {"a": "b"}},
    "{image_id}": {"metadata": {"a": "b"}},
    "{secret_name}": {"value": "theirs"},
    "images": {"registry": {"reference": "registry.example.com/app:1"}},
}


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncGenerator[Stand]:
    async with api(tmp_path) as running:
        yield running


class Target:
    """A sandbox of the root project with a process, and an image with a name, aimed at by strangers."""

    def __init__(
        self, sandbox_id: str, process_id: str, tunnel_id: str, image_id: str, tag_name: str = "mine:1"
    ) -> None:
        self.sandbox_id = sandbox_id
        self.process_id = process_id
        self.tunnel_id = tunnel_id
        self.image_id = image_id
        self.tag_name = tag_name
        self.secret_name = "mine"

    def path(self, template: str) -> str:
        return template.format(**vars(self), sha256="0" * 64, code="internal")


@pytest.fixture
async def target(stand: Stand) -> Target:
    sandbox = await stand.root.create(name="mine", metadata={"owner": "root"})
    process = await stand.root.call("POST", f"/v1/sandboxes/{sandbox['id']}/processes", {"argv": ["cat"]})
    tunnel = await stand.root.call("POST", f"/v1/sandboxes/{sandbox['id']}/tunnels", {"port": 22, "kind": "tcp"})
    (await stand.root.call("PUT", "/v1/secrets/mine", {"value": "ours"})).expect(201)
    return Target(sandbox["id"], process.expect(201)["id"], tunnel.expect(201)["id"], await an_image(stand))


async def an_image(stand: Stand) -> str:
    """A ready image of the root project, called mine:1."""
    me = (await stand.root.call("GET", "/v1/me")).expect(200)
    project = me["project"]["id"]
    image = Image(
        id=new_id("img", os.urandom),
        project_id=project,
        key_id="key",
        node_id=stand.node.id,
        state="ready",
        kind="registry",
        source={},
        content_id=IMAGE,
        digest="sha256:0",
        created_at=1,
        updated_at=1,
        ready_at=1,
    )
    database = stand.platform.database
    await database.write(images.insert_new, project, image)
    await database.write(images.set_tag, project, "mine", "1", image.id, now_us=1)
    await database.write(images.use_upload, project, "0" * 64, stand.node.id, stand.clock.now_us())
    return image.id


async def attempt(stand: Stand, key: str | None, method: str, path: str, template: str, **options: Any) -> Answer:
    takes_json = method in {"post", "patch"} or (method == "put" and template.endswith(("/egress", "{secret_name}")))
    body = BODIES.get(template.rpartition("/")[2]) if takes_json else None
    return await stand.with_key(key).call(method.upper(), path, body, **options)


def test_the_document_lists_what_these_tests_know() -> None:
    known = PUBLIC | OF_THE_CALLER | OF_OPERATORS | set(OF_AN_IMAGE) | set(OF_A_SECRET)
    unknown = {operation for operation in OPERATIONS if operation not in known and "{sandbox_id}" not in operation[1]}
    assert unknown == set()
    assert known <= set(OPERATIONS)


@pytest.mark.parametrize(("method", "template"), OPERATIONS)
async def test_without_a_valid_key_nothing_is_done(stand: Stand, target: Target, method: str, template: str) -> None:
    path = target.path(template)
    if (method, template) in PUBLIC:
        assert (await attempt(stand, None, method, path, template)).status == 200
        return
    calls = len(stand.node.requests)
    unknown = keys.render("project", keys.new_key(os.urandom))
    expired = await stand.new_key(expires_at=stand.clock.now_us() - 1)
    wrong_check = unknown[:-10] + ("a" if unknown[-10] != "a" else "b") + unknown[-9:]
    tries = [
        (None, "missing"),
        (unknown, "unknown"),
        (expired, "expired"),
        (wrong_check, "malformed"),
        ("not-a-key!", "malformed"),
    ]
    for key, reason in tries:
        problem = (await attempt(stand, key, method, path, template)).expect(401)
        assert (problem["code"], problem["reason"]) == ("unauthenticated", reason)
        assert key is None or key not in json.dumps(problem)
    assert len(stand.node.requests) == calls


@pytest.mark.parametrize(("method", "template"), [one for one in OPERATIONS if "{sandbox_id}" in one[1]])
async def test_anothers_sandbox_does_not_exist(stand: Stand, target: Target, method: str, template: str) -> None:
    calls = len(stand.node.requests)
    stranger = await stand.new_key()
    there = await attempt(stand, stranger, method, target.path(template), template)
    nowhere = Target(new_id("sbx", os.urandom), target.process_id, target.tunnel_id, target.image_id)
    absent = await attempt(stand, stranger, method, nowhere.path(template), template)
    assert there.expect(404)["code"] == absent.expect(404)["code"] == "sandbox_not_found"
    assert set(there.body) == set(absent.body)
    assert len(stand.node.requests) == calls
    assert (await stand.root.get(target.sandbox_id))["generation"] == 1


@pytest.mark.parametrize(("method", "template"), [one for one in OF_AN_IMAGE if one[0] != "put"])
async def test_anothers_image_does_not_exist(stand: Stand, target: Target, method: str, template: str) -> None:
    calls = len(stand.node.requests)
    stranger = await stand.new_key()
    there = await attempt(stand, stranger, method, target.path(template), template)
    nowhere = Target(target.sandbox_id, target.process_id, new_id("img", os.urandom), "other:1")
    absent = await attempt(stand, stranger, method, nowhere.path(template), template)
    assert there.expect(404)["code"] == absent.expect(404)["code"]
    assert set(there.body) == set(absent.body)
    assert len(stand.node.requests) == calls
    image = (await stand.root.call("GET", f"/v1/images/{target.image_id}")).expect(200)
    assert (image["generation"], image["tags"]) == (1, ["mine:1"])


async def test_anothers_image_cannot_be_used(stand: Stand, target: Target) -> None:
    calls = len(stand.node.requests)
    stranger = stand.with_key(await stand.new_key())
    for image in (target.image_id, "mine:1"):
        assert (await stranger.call("POST", "/v1/sandboxes", {"image": image})).expect(404)["code"] == "image_not_found"
    tag = await stranger.call("PUT", "/v1/tags/theirs:1", {"image_id": target.image_id})
    assert tag.expect(404)["code"] == "image_not_found"
    assert len(stand.node.requests) == calls
    assert (await stand.root.create(image="mine:1"))["image"]["id"] == target.image_id


@pytest.mark.parametrize(("method", "template"), OF_A_SECRET)
async def test_anothers_secret_does_not_exist(stand: Stand, target: Target, method: str, template: str) -> None:
    stranger = await stand.new_key()
    there = await attempt(stand, stranger, method, target.path(template), template)
    absent = await attempt(stand, stranger, method, "/v1/secrets/absent", template)
    assert there.expect(404)["code"] == absent.expect(404)["code"] == "secret_not_found"
    assert set(there.body) == set(absent.body)
    assert (await stand.root.call("GET", "/v1/secrets/mine")).expect(200)["version"] == 1


async def test_a_name_of_anothers_secret_is_ones_own(stand: Stand, target: Target) -> None:
    stranger = stand.with_key(await stand.new_key())
    (await stranger.call("PUT", "/v1/secrets/mine", {"value": "theirs"})).expect(201)
    (await stranger.call("DELETE", "/v1/secrets/mine")).expect(204)
    assert (await stand.root.call("GET", "/v1/secrets/mine")).expect(200)["version"] == 1


async def test_without_an_answers_body_a_stranger_learns_no_more(stand: Stand, target: Target) -> None:
    heads = [path for path, methods in DOCUMENT["paths"].items() if "head" in methods]
    assert heads
    me = (await stand.root.call("GET", "/v1/me")).expect(200)
    scopeless = await stand.new_key("events", project=me["project"]["id"])
    calls = len(stand.node.requests)
    for path in heads:
        for key, status in ((None, 401), ("not-a-key!", 401), (await stand.new_key(), 404), (scopeless, 403)):
            answer = await stand.with_key(key).call("HEAD", target.path(path))
            assert (answer.status, answer.raw) == (status, b"")
    assert len(stand.node.requests) == calls


def area_of(template: str) -> str:
    """The scope's area: a route's last collection."""
    if template.split("/")[2:3] in [[name] for name in IMAGE_COLLECTIONS]:
        return "images"
    if template.startswith("/v1/secrets"):
        return "secrets"
    if "/processes" in template or template.endswith("}/run"):
        return "processes"
    if "/tunnels" in template or template.endswith("/tokens"):
        return "tunnels"
    return "files" if template.split("/")[4:5] in FILE_COLLECTIONS else "sandboxes"


@pytest.mark.parametrize(("method", "template"), [one for one in OPERATIONS if one not in PUBLIC])
async def test_a_key_without_the_scope_may_not(stand: Stand, target: Target, method: str, template: str) -> None:
    if (method, template) == ("get", "/v1/me"):
        return
    me = (await stand.root.call("GET", "/v1/me")).expect(200)
    calls = len(stand.node.requests)
    area = area_of(template)
    others = ["events", "snapshots:write" if area == "secrets" else "secrets:write"]
    scopes = others if method in {"get", "head"} else [*others, f"{area}:read"]
    key = await stand.new_key(*scopes, project=me["project"]["id"])
    problem = (await attempt(stand, key, method, target.path(template), template)).expect(403)
    assert problem["code"] == "scope_required"
    assert len(stand.node.requests) == calls


async def test_lists_show_only_the_callers_own(stand: Stand, target: Target) -> None:
    stranger = stand.with_key(await stand.new_key())
    for query in ("", "?name=mine", "?metadata.owner=root", "?state=running"):
        assert (await stranger.call("GET", "/v1/sandboxes" + query)).expect(200)["items"] == []
    own = await stranger.create(name="mine")
    assert own["id"] != target.sandbox_id
    found = await stranger.call("POST", "/v1/sandboxes", {"name": "mine", "if_exists": "return"})
    assert found.expect(200)["id"] == own["id"]


async def test_a_cursor_of_one_project_is_none_in_another(stand: Stand, target: Target) -> None:
    await stand.root.create()
    cursor = (await stand.root.call("GET", "/v1/sandboxes?limit=1")).expect(200)["next_cursor"]
    stranger = stand.with_key(await stand.new_key())
    assert (await stranger.call("GET", f"/v1/sandboxes?limit=1&cursor={cursor}")).expect(400)[
        "code"
    ] == "invalid_cursor"


async def test_another_project_cannot_be_named(stand: Stand, target: Target) -> None:
    me = (await stand.root.call("GET", "/v1/me")).expect(200)
    stranger = stand.with_key(await stand.new_key())
    headers = {"Sandlot-Project": me["project"]["id"]}
    problem = (await stranger.call("GET", "/v1/sandboxes", headers=headers)).expect(404)
    assert problem["code"] == "project_not_found"
    (await stand.root.call("GET", "/v1/sandboxes", headers=headers)).expect(200)


@pytest.mark.parametrize(("method", "template"), LATER)
async def test_calls_of_later_versions_ask_for_a_key_too(
    stand: Stand, target: Target, method: str, template: str
) -> None:
    path = target.path(template)
    (await stand.with_key(None).call(method, path)).expect(401)
    assert (await stand.root.call(method, path)).expect(501)["code"] == "not_implemented"


async def test_credentials_come_one_way_or_the_other(stand: Stand) -> None:
    key = stand.root.headers["Authorization"].removeprefix("Bearer ")
    nobody = stand.with_key(None)
    for headers in (
        {"X-API-Key": key},
        {"Authorization": f"bearer {key}"},
        {"X-API-Key": keys.render_e2b(keys.decode(key))},
        {"X-API-Key": key, "Authorization": f"Bearer {key}"},
    ):
        (await nobody.call("GET", "/v1/me", headers=headers)).expect(200)
    other = await stand.new_key()
    for headers in (
        {"X-API-Key": key, "Authorization": f"Bearer {other}"},
        {"Authorization": f"Basic {key}"},
        {"Authorization": key},
        {"Authorization": "Bearer"},
        {"X-API-Key": ""},
        {"X-API-Key": keys.render("operator", keys.decode(key))},
    ):
        answer = await nobody.call("GET", "/v1/me", headers=headers)
        assert answer.expect(401)["code"] == "unauthenticated"
        assert answer.headers["WWW-Authenticate"] == "Bearer"


async def test_metrics_are_the_operators(stand: Stand) -> None:
    operator = stand.with_key(await stand.new_key("operator", kind="operator"))
    answer = await operator.call("GET", "/metrics")
    assert answer.status == 200
    assert b"sandlot_api_requests_total" in answer.raw
    (await stand.root.call("GET", "/metrics")).expect(403)


async def test_the_internal_calls_are_not_public(stand: Stand) -> None:
    problem = (await stand.root.call("POST", "/internal/v1/node-reports", {})).expect(404)
    assert problem["code"] == "route_not_found"


async def test_keys_lie_hashed_and_private(stand: Stand, tmp_path: Path) -> None:
    private = tmp_path / "data" / "api"
    key = (private / "root-key").read_text().strip()
    for name in ("root-key", "secret", "secret-keys", "token-keys"):
        assert (private / name).stat().st_mode & 0o777 == 0o600
    for path in private.glob("api.db*"):
        data = path.read_bytes()
        assert key.encode() not in data
        assert keys.decode(key) not in data
