"""Images through the API: promised, followed, named, shown to whom they may be, removed; and what a create does."""

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from api.store import images as store
from api_stand import until
from image_stand import HOST, ImageStand, image_stand


@pytest.fixture(name="images")
async def _images(tmp_path: Path) -> AsyncGenerator[ImageStand]:
    async with image_stand(tmp_path) as opened:
        yield opened


async def settled(images: ImageStand, image_id: str) -> dict[str, Any]:
    return (await images.root.call("GET", f"/v1/images/{image_id}?wait_seconds=30")).expect(200)


async def test_an_image_is_made_and_shown(images: ImageStand) -> None:
    made = await images.make("app:1", tags=["app", "app:v1"], metadata={"a": "b"})
    assert (made["state"], made["reference"]) == ("ready", f"{HOST}/app:1")
    assert made["tags"] == ["app:latest", "app:v1"]
    assert made["config"]["user"] == "user"
    assert made["metadata"] == {"a": "b"}
    again = (await images.root.call("GET", f"/v1/images/{made['id']}")).expect(200)
    assert again == made
    listed = (await images.root.call("GET", "/v1/images?tag=app:v1&state=ready")).expect(200)["items"]
    assert [row["id"] for row in listed] == [made["id"]]
    everything = (await images.root.call("GET", "/v1/images")).expect(200)["items"]
    assert [row["tags"] for row in everything] == [made["tags"], ["base"]]


async def test_failures_keep_their_reason(images: ImageStand) -> None:
    made = await images.make("corrupt:1", tags=["bad"])
    assert (made["state"], made["reason"]) == ("failed", "corrupt")
    problem = (await images.root.call("POST", "/v1/sandboxes", {"image": "bad"})).expect(422)
    assert (problem["code"], problem["reason"], problem["image_id"]) == ("image_refused", "corrupt", made["id"])


async def test_what_is_promised_is_followed(images: ImageStand) -> None:
    began = (await images.begin("slow:1")).expect(202)
    assert began["state"] in {"pending", "importing"}
    await until(lambda: began["id"] in images.runner.running)
    shown = (await images.root.call("GET", f"/v1/images/{began['id']}")).expect(200)
    assert shown["progress"] == {"done_bytes": 1, "total_bytes": 2}
    (await images.root.call("DELETE", f"/v1/images/{began['id']}")).expect(204)
    await until(lambda: not images.runner.running)
    (await images.root.call("GET", f"/v1/images/{began['id']}")).expect(404)


async def test_a_key_makes_one_image(images: ImageStand) -> None:
    body = {"registry": {"reference": f"{HOST}/app:1"}, "wait_seconds": 30}
    headers = {"Idempotency-Key": "k"}
    one = await images.root.call("POST", "/v1/images", body, headers=headers)
    two = await images.root.call("POST", "/v1/images", body, headers=headers)
    assert one.body["id"] == two.body["id"]
    assert two.headers["Idempotency-Replayed"] == "true"
    other = await images.root.call("POST", "/v1/images", body | {"tags": ["x"]}, headers=headers)
    assert other.expect(422)["code"] == "idempotency_mismatch"


async def test_the_same_digest_is_not_made_twice(images: ImageStand) -> None:
    name = "app@sha256:" + "ab" * 32
    one = await images.make(name)
    two = await images.begin(name, tags=["again"])
    assert two.expect(200)["id"] == one["id"]
    assert two.body["tags"] == ["again:latest"]


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({}, ""),
        ({"registry": {"reference": "x.example.com/a"}, "snapshot": {"snapshot_id": "snp" + "a" * 20}}, ""),
        ({"registry": {"reference": "no-registry"}}, "/registry/reference"),
        ({"registry": {"reference": "x.example.com/UPPER"}}, "/registry/reference"),
        ({"registry": {"reference": "x.example.com/a", "platform": "windows/amd64"}}, "/registry/platform"),
        ({"registry": {"reference": "x.example.com/a"}, "tags": ["Not A Tag"]}, "/tags/0"),
        ({"registry": {"reference": "x.example.com/a"}, "config": {"cwd": "relative"}}, "/config/cwd"),
        ({"build": {"steps": [{"run": "a", "user": "b"}]}}, "/build/steps/0"),
        ({"build": {"steps": [], "dockerfile": "FROM x"}}, "/build"),
        ({"archive": {"upload": "0" * 64, "format": "zip"}}, "/archive/format"),
    ],
)
async def test_bad_requests_say_where(images: ImageStand, spec: dict[str, Any], path: str) -> None:
    problem = (await images.root.call("POST", "/v1/images", spec)).expect(422)
    assert (problem["code"], problem["errors"][0]["path"]) == ("invalid_request", path), problem


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"snapshot": {"snapshot_id": "snp" + "a" * 20}}, "images.snapshot"),
    ],
)
async def test_what_is_not_there_yet_says_so(images: ImageStand, spec: dict[str, Any], reason: str) -> None:
    problem = (await images.root.call("POST", "/v1/images", spec)).expect(501)
    assert (problem["code"], problem["reason"]) == ("not_implemented", reason)
    assert (await images.root.call("GET", "/v1/images?visibility=project")).expect(200)["items"] == []


async def test_a_create_imports_what_it_names(images: ImageStand) -> None:
    reference = f"{HOST}/team/tool:2"
    creates = [images.root.create(image=reference) for _ in range(8)]
    sandboxes = await asyncio.gather(*creates)
    assert {sandbox["state"] for sandbox in sandboxes} == {"running"}
    assert len({sandbox["image"]["id"] for sandbox in sandboxes}) == 1
    assert len(images.jobs.list()) == 1
    image = await settled(images, sandboxes[0]["image"]["id"])
    assert image["state"] == "ready"
    assert sandboxes[0]["image"]["digest"] == image["digest"]
    again = await images.root.create(image=reference)
    assert again["image"] == sandboxes[0]["image"]
    by_id = await images.root.create(image=image["id"])
    assert by_id["image"]["id"] == image["id"]
    listed = (await images.root.call("GET", f"/v1/sandboxes?image_id={image['id']}")).expect(200)["items"]
    assert len(listed) == 10
    assert (await settled(images, image["id"]))["last_used_at"] is not None


async def test_a_create_that_waits_is_a_promise(images: ImageStand) -> None:
    early = await images.root.create(image=f"{HOST}/slow:1", wait_seconds=0)
    assert (early["state"], early["node_id"]) == ("pending", None)
    assert "image" in early["message"]
    image_id = early["image"]["id"]
    await until(lambda: image_id in images.runner.running)
    ended = await images.root.call("DELETE", f"/v1/sandboxes/{early['id']}?wait_seconds=30")
    assert ended.expect(200)["state"] == "stopped"
    assert image_id in images.runner.running
    waiting = await images.root.create(image=image_id, wait_seconds=0)
    (await images.root.call("DELETE", f"/v1/images/{image_id}")).expect(204)
    failed = await images.root.reach(waiting["id"], "failed")
    assert failed["reason"] == "image_unavailable"


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("unauthorized", 422, "image_unauthorized"),
        ("registry_unavailable", 502, "registry_unavailable"),
        ("not_found", 422, "image_refused"),
        ("wrong_platform", 422, "image_refused"),
        ("too_large", 422, "image_refused"),
        ("unsafe_content", 422, "image_refused"),
    ],
)
async def test_a_create_says_why_its_image_cannot_be_had(images: ImageStand, name: str, status: int, code: str) -> None:
    answer = await images.root.call("POST", "/v1/sandboxes", {"image": f"{HOST}/{name}:1"})
    problem = answer.expect(status)
    assert (problem["code"], problem["reason"]) == (code, name)
    kept = await images.root.get(problem["sandbox_id"])
    assert (kept["state"], kept["reason"]) == ("failed", "image_unavailable")


async def test_names_go_before_the_platforms(images: ImageStand) -> None:
    made = await images.make("app:1", tags=["base"])
    mine = await images.root.create(image="base")
    assert mine["image"]["id"] == made["id"]
    (await images.root.call("DELETE", "/v1/tags/base:latest")).expect(204)
    platforms = await images.root.create(image="base")
    assert platforms["image"]["id"] != made["id"]
    assert mine["image"]["reference"] == platforms["image"]["reference"] == "base"


async def test_names_without_a_registry_need_a_default(images: ImageStand, tmp_path: Path) -> None:
    problem = (await images.root.call("POST", "/v1/sandboxes", {"image": "team/app:1"})).expect(404)
    assert problem["code"] == "image_not_found"
    assert "SANDLOT_DEFAULT_REGISTRY" in problem["hint"]
    (tmp_path / "other").mkdir()
    async with image_stand(tmp_path / "other", default_registry=HOST, library_registries=(HOST,)) as other:
        sandbox = await other.root.create(image="tool:3")
        image = (await other.root.call("GET", f"/v1/images/{sandbox['image']['id']}")).expect(200)
        assert image["reference"] == f"{HOST}/library/tool:3"


async def test_a_report_that_was_written_before_takes_nothing_away(images: ImageStand) -> None:
    """This node never lists what it makes: one such report may be late, two are the truth."""
    made = await images.make("app:1")
    await images.stand.node.send_report()
    assert (await images.root.create(image=made["id"]))["state"] == "running"
    await images.stand.node.send_report()
    problem = (await images.root.call("POST", "/v1/sandboxes", {"image": made["id"]})).expect(503)
    assert problem["code"] == "image_unavailable"


async def test_tags(images: ImageStand) -> None:
    one, two = await images.make("app:1"), await images.make("app:2")
    for name, image, status in (("a:1", one, 201), ("a:1", two, 200), ("b:x", one, 201)):
        tag = (await images.root.call("PUT", f"/v1/tags/{name}", {"image_id": image["id"]})).expect(status)
        assert tag["image_id"] == image["id"]
    assert (await images.root.call("GET", "/v1/tags/a:1")).expect(200)["image_id"] == two["id"]
    first = (await images.root.call("GET", "/v1/tags?limit=1")).expect(200)
    rest = (await images.root.call("GET", f"/v1/tags?cursor={first['next_cursor']}")).expect(200)
    assert [tag["name"] for tag in first["items"] + rest["items"]] == ["a", "b"]
    (await images.root.call("DELETE", f"/v1/images/{one['id']}")).expect(204)
    assert (await images.root.call("GET", "/v1/tags/b:x")).expect(404)["code"] == "tag_not_found"
    (await images.root.call("DELETE", "/v1/tags/b:x")).expect(404)
    for bad in ("a", "A:1", "a:" + "x" * 129, "a:b:c", "..:1"):
        assert (await images.root.call("GET", f"/v1/tags/{bad}")).status in {404, 422}
    missing = await images.root.call("PUT", "/v1/tags/a:1", {"image_id": "img" + "a" * 20})
    assert missing.expect(404)["code"] == "image_not_found"


async def test_patches_and_preconditions(images: ImageStand) -> None:
    made = await images.make("app:1", metadata={"a": "1", "b": "2"})
    path = f"/v1/images/{made['id']}"
    changed = await images.root.call("PATCH", path, {"metadata": {"a": None, "c": "3"}, "visibility": "tree"})
    assert changed.expect(200)["metadata"] == {"b": "2", "c": "3"}
    assert (changed.body["visibility"], changed.headers["ETag"]) == ("tree", '"2"')
    stale = {"If-Match": '"1"'}
    assert (await images.root.call("PATCH", path, {"metadata": {}}, headers=stale)).expect(412)
    assert (await images.root.call("DELETE", path, headers=stale)).expect(412)
    refused = await images.root.call("PATCH", path, {"visibility": "public"})
    assert refused.expect(403)["code"] == "scope_required"
    assert (await images.begin("app:2", visibility="public")).expect(403)


async def test_who_sees_what(images: ImageStand) -> None:
    stand = images.stand
    me = (await images.root.call("GET", "/v1/me")).expect(200)["project"]["id"]
    operator = stand.with_key(await stand.new_key("operator", "images", "sandboxes", kind="operator", project=me))
    child = stand.with_key(await stand.new_key())
    own = await images.make("own:1", tags=["own"])
    tree = await images.make("tree:1", tags=["tree"], visibility="tree")
    public = await images.make("public:1", operator, visibility="public")
    seen = {row["id"] for row in (await child.call("GET", "/v1/images")).expect(200)["items"]}
    assert {tree["id"], public["id"]} <= seen
    assert own["id"] not in seen
    (await child.call("GET", f"/v1/images/{own['id']}")).expect(404)
    for image in (tree["id"], public["id"], "tree"):
        assert (await child.create(image=image))["state"] == "running"
    for image in (own["id"], "own"):
        assert (await child.call("POST", "/v1/sandboxes", {"image": image})).expect(404)["code"] == "image_not_found"
    assert (await child.call("GET", f"/v1/images/{tree['id']}")).expect(200)["tags"] == []
    (await child.call("PATCH", f"/v1/images/{tree['id']}", {"visibility": "project"})).expect(404)
    (await child.call("DELETE", f"/v1/images/{tree['id']}")).expect(404)
    (await child.call("GET", f"/v1/images/{tree['id']}/log")).expect(404)
    theirs = await images.make("app:9", child, visibility="tree")
    (await images.root.call("GET", f"/v1/images/{theirs['id']}")).expect(404)


async def test_content_is_no_way_around(images: ImageStand) -> None:
    """What nodes know an image by is no id for callers, unless an operator gave the image a name."""
    await images.make("own:1")
    (held,) = [image for image in images.images.held() if not image.names]
    assert (await images.root.call("GET", f"/v1/images/{held.id}")).status == 404
    problem = (await images.root.call("POST", "/v1/sandboxes", {"image": held.id})).expect(404)
    assert problem["code"] == "image_not_found"


async def test_logs_are_lines_and_events(images: ImageStand) -> None:
    made = await images.make("app:1")
    path = f"/v1/images/{made['id']}/log"
    lines = [json.loads(line) for line in (await images.root.call("GET", path + "?follow=true")).raw.splitlines()]
    assert [line["kind"] for line in lines] == ["progress", "exit"]
    rest = await images.root.call("GET", f"{path}?after={lines[0]['next']}")
    assert [json.loads(line) for line in rest.raw.splitlines()] == lines[1:]
    events = await images.root.call("GET", path, headers={"Accept": "text/event-stream"})
    assert b"event: exit\nid: %d:end\n" % lines[-1]["next"] in events.raw
    done = {"Accept": "text/event-stream", "Last-Event-ID": f"{lines[-1]['next']}:end"}
    assert (await images.root.call("GET", path, headers=done)).status == 204
    assert (await images.root.call("GET", path, headers={"Accept": "image/png"})).status == 406


async def test_uploads_are_resumed_and_used(images: ImageStand) -> None:
    data = b"0123456789" * 1000
    sha256 = hashlib.sha256(data).hexdigest()
    path, total = f"/v1/uploads/{sha256}", len(data)
    assert (await images.root.call("HEAD", path)).status == 404
    part = await images.root.call("PUT", f"{path}?total_bytes={total}", data=data[:4000])
    assert part.expect(200) == {"offset": 4000, "total_bytes": total, "complete": False}
    assert (await images.root.call("HEAD", path)).headers["Upload-Offset"] == "4000"
    early = await images.root.call("POST", "/v1/images", {"archive": {"upload": sha256, "format": "oci"}})
    assert early.expect(404)["code"] == "upload_not_found"
    gap = await images.root.call("PUT", f"{path}?total_bytes={total}&offset=5000", data=data[5000:])
    assert gap.expect(416)["size_bytes"] == 4000
    whole = await images.root.call("PUT", f"{path}?total_bytes={total}&offset=4000", data=data[4000:])
    assert whole.expect(201)["complete"]
    made = await images.root.call(
        "POST", "/v1/images", {"archive": {"upload": sha256, "format": "oci"}, "wait_seconds": 30}
    )
    assert made.body["state"] == "ready"
    again = await images.root.call("POST", "/v1/images", {"archive": {"upload": sha256, "format": "oci"}})
    assert again.expect(200)["id"] == made.body["id"]
    for query in ("", "?total_bytes=0", "?total_bytes=x", "?total_bytes=5&offset=-1", "?total_bytes=5&more=1"):
        assert (await images.root.call("PUT", path.replace(sha256, "1" * 64) + query, data=b"abc")).status == 422
    wrong = await images.root.call("PUT", f"/v1/uploads/{'2' * 64}?total_bytes=3", data=b"abc")
    assert wrong.expect(422)["errors"][0]["code"] == "digest"


async def test_a_stranger_learns_nothing_of_uploads(images: ImageStand) -> None:
    """Content another project has sent looks like content nobody has, until the stranger has sent it all himself."""
    data = b"secret content"
    sha256 = hashlib.sha256(data).hexdigest()
    path, query = f"/v1/uploads/{sha256}", f"?total_bytes={len(data)}"
    (await images.root.call("PUT", path + query, data=data)).expect(201)
    stranger = images.stand.with_key(await images.stand.new_key())
    assert (await stranger.call("HEAD", path)).status == 404
    refused = await stranger.call("POST", "/v1/images", {"archive": {"upload": sha256, "format": "oci"}})
    assert refused.expect(404)["code"] == "upload_not_found"
    part = await stranger.call("PUT", path + query, data=data[:5])
    assert part.expect(200) == {"offset": 5, "total_bytes": len(data), "complete": False}


async def test_an_api_that_starts_again_follows_on(tmp_path: Path) -> None:
    async with image_stand(tmp_path) as images:
        began = (await images.begin("slow:1")).expect(202)
        await until(lambda: began["id"] in images.runner.running)
        made = await images.make("app:1", tags=["app"])
    async with image_stand(tmp_path) as images:
        await until(lambda: began["id"] in images.runner.running)
        shown = (await images.root.call("GET", f"/v1/images/{began['id']}")).expect(200)
        assert shown["state"] == "importing"
        assert (await images.root.call("GET", "/v1/images?tag=app")).expect(200)["items"][0]["id"] == made["id"]


async def test_lists_go_page_by_page(images: ImageStand) -> None:
    made = [(await images.make(f"app:{number}"))["id"] for number in range(5)]
    seen: list[str] = []
    cursor = ""
    while True:
        page = (await images.root.call("GET", f"/v1/images?limit=2&order=asc{cursor}")).expect(200)
        seen += [row["id"] for row in page["items"] if row["project_id"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert seen == made
    stranger = images.stand.with_key(await images.stand.new_key())
    assert (await stranger.call("GET", f"/v1/images?limit=2&order=asc{cursor}")).status == 400


async def test_a_registrys_password_is_a_secret(images: ImageStand) -> None:
    body = {"value": "hunter2", "hosts": [HOST]}
    (await images.root.call("PUT", "/v1/secrets/TOKEN", body)).expect(201)
    registry = {"reference": f"{HOST}/app:1", "username": "me", "password_secret": "TOKEN"}
    made = await images.root.call("POST", "/v1/images", {"registry": registry, "wait_seconds": 30})
    assert made.expect(200)["state"] == "ready"
    asked = images.runner.asked[-1].source.registry
    assert asked is not None
    assert (asked.username, asked.password) == ("me", "hunter2")
    record = await images.stand.platform.database.read(store.get_own, made.body["project_id"], made.body["id"])
    assert record.source["password_secret"] == "TOKEN"
    assert "hunter2" not in made.raw.decode() + str(record)
    (await images.root.call("PUT", "/v1/secrets/TOKEN", body | {"hosts": ["example.com"]})).expect(200)
    refused = await images.root.call("POST", "/v1/images", {"registry": registry | {"reference": f"{HOST}/app:2"}})
    assert refused.expect(422)["errors"][0]["code"] == "secret_host"
