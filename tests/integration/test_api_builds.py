"""Builds and images of sandboxes through the API: what is refused before a node hears of it, what a node is asked."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from image_stand import HOST, ImageStand, image_stand


@pytest.fixture(name="images")
async def _images(tmp_path: Path) -> AsyncGenerator[ImageStand]:
    async with image_stand(tmp_path) as opened:
        yield opened


async def build(images: ImageStand, status: int = 200, client: Any = None, **given: Any) -> dict[str, Any]:
    body = {"build": given, "wait_seconds": 30}
    return (await (client or images.root).call("POST", "/v1/images", body)).expect(status)


async def test_a_node_is_told_what_each_name_stands_for(images: ImageStand) -> None:
    own = await images.make("own:1", tags=["mine"])
    text = "ARG V=1\nFROM base AS a\nFROM mine\nCOPY --from=a / /a\nCOPY --from=base / /b\n"
    made = await build(images, dockerfile=text)
    assert made["state"] == "ready"
    source = images.runner.asked[-1].source.build
    assert source is not None
    assert source.images.keys() == {"base", "mine"}
    assert source.images["mine"].digest == own["digest"]
    assert source.build.egress is not None
    await build(images, steps=[{"run": "x"}])
    source = images.runner.asked[-1].source.build
    assert source is not None
    assert source.images.keys() == {"base"}


async def test_a_base_of_a_registry_is_fetched_first(images: ImageStand) -> None:
    made = await build(images, dockerfile=f"FROM {HOST}/team/app:1\nRUN x")
    assert made["state"] == "ready"
    assert [asked.source.kind for asked in images.runner.asked] == ["registry", "build"]
    problem = await build(images, 422, dockerfile=f"FROM {HOST}/corrupt:1\nRUN x")
    assert (problem["code"], problem["reason"]) == ("image_refused", "corrupt")


@pytest.mark.parametrize(
    ("given", "status", "says"),
    [
        ({"dockerfile": "FROM base\nRUNN x"}, 422, "line 2"),
        ({"dockerfile": "FROM base", "target": "gone"}, 422, "no stage"),
        ({"dockerfile": "FROM gone\nRUN x"}, 404, "gone"),
        ({"steps": [], "from": "gone"}, 404, "gone"),
        ({"dockerfile": "FROM base", "steps": []}, 422, "exactly one"),
        ({"steps": [{"run": "x", "user": "y"}]}, 422, "exactly one"),
        ({"steps": [{"fetch": "x"}]}, 422, "fetch"),
        ({"dockerfile": "FROM base", "context": "0" * 64}, 404, "no upload"),
    ],
)
async def test_what_cannot_be_built_is_refused_at_once(
    images: ImageStand, given: dict[str, Any], status: int, says: str
) -> None:
    problem = await build(images, status, **given)
    assert says in str(problem)
    assert images.runner.asked == []


async def test_strangers_build_on_nothing_of_others(images: ImageStand) -> None:
    stranger = images.stand.with_key(await images.stand.new_key())
    own = await images.make("own:1", tags=["mine"])
    sandbox = await images.root.create(image="base")
    for name in ("mine", own["id"]):
        problem = await build(images, 404, stranger, dockerfile=f"FROM base\nCOPY --from={name} / /\n")
        assert problem["code"] == "image_not_found"
    body = {"sandbox": {"sandbox_id": sandbox["id"]}}
    assert (await stranger.call("POST", "/v1/images", body)).expect(404)["code"] == "sandbox_not_found"


async def test_an_image_of_a_sandbox(images: ImageStand) -> None:
    sandbox = await images.root.create(image="base")
    body = {"sandbox": {"sandbox_id": sandbox["id"], "exclude": ["tmp/*"]}, "wait_seconds": 30}
    assert (await images.root.call("POST", "/v1/images", body)).expect(200)["state"] == "ready"
    source = images.runner.asked[-1].source.sandbox
    assert source is not None
    assert (source.sandbox_id, source.exclude) == (sandbox["id"], ["tmp/*"])
    (await images.root.call("DELETE", f"/v1/sandboxes/{sandbox['id']}")).expect(200)
    problem = (await images.root.call("POST", "/v1/images", body)).expect(409)
    assert problem["code"] == "invalid_state"


async def test_secrets_of_a_build_are_resolved(images: ImageStand) -> None:
    for name, env in (("TOKEN", True), ("CLOSED", False)):
        (await images.root.call("PUT", f"/v1/secrets/{name}", {"value": "hunter2", "env": env})).expect(201)
    for secret, status, path in (("CLOSED", 422, "/build/secret_env/A"), ("GONE", 404, "")):
        problem = await build(images, status, steps=[{"run": "x"}], secret_env={"A": secret})
        assert path in str(problem.get("errors", ""))
    assert images.runner.asked == []
    made = await build(images, steps=[{"run": "x"}], secret_env={"A": "TOKEN"})
    assert "hunter2" not in str(made)
    source = images.runner.asked[-1].source.build
    assert source is not None
    assert source.build.secret_env == {"A": "hunter2"}
    key = await images.stand.new_key("images", project=made["project_id"])
    body = {"build": {"steps": [{"run": "x"}], "secret_env": {"A": "TOKEN"}}}
    refused = await images.stand.with_key(key).call("POST", "/v1/images", body)
    assert refused.expect(403)["required_scope"] == "secrets:read"


async def test_a_build_injects_nothing(images: ImageStand) -> None:
    entry = {"host": "a.example.com", "header": "x-a", "value_from": {"secret": "TOKEN"}}
    egress = {"mode": "open", "inject": [entry]}
    problem = await build(images, 501, steps=[{"run": "x"}], egress=egress)
    assert problem["reason"] == "build.egress.inject"
