"""Images through the public API, against Debian's own registry, into real sandboxes."""

import hashlib
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import pytest

from harness import Platform, cache_dir
from harness import platform as platforms
from real_registry import PASSWORD, USER, Served, run
from registry_kit import make_image, pack, tar_of, write_layout


@pytest.fixture(scope="module", name="platform")
def _platform(home: Path, open_registry: Served, closed_registry: Served) -> Generator[Platform]:
    """Ours are in plain HTTP, and the operator has a password for one of them."""
    auth = home / "auth.json"
    row = {"username": USER, "password": PASSWORD}
    auth.write_text(json.dumps({"auths": {closed_registry.host: row}}))
    auth.chmod(0o600)
    with platforms(
        insecure_registries=json.dumps([open_registry.host, closed_registry.host]),
        registry_auth_file=str(auth),
        heartbeat_seconds="1",
    ) as running:
        yield running


def said(platform: Platform, image: str, *argv: str) -> str:
    answer = platform.http.post("/v1/run", json={"image": image, "command": {"argv": list(argv)}})
    assert answer.is_success, answer.text
    return answer.json()["stdout"]


def made(platform: Platform, **spec: Any) -> dict[str, Any]:
    answer = platform.http.post("/v1/images", json={"wait_seconds": 60, **spec})
    assert answer.is_success, answer.text
    image = answer.json()
    if image["state"] not in {"ready", "failed"}:
        image = platform.http.get(f"/v1/images/{image['id']}", params={"wait_seconds": 60}).json()
    return image


def test_a_sandbox_of_a_reference_nobody_had(platform: Platform, open_registry: Served, layout: Path) -> None:
    """The image has no shell, and nothing but one program."""
    open_registry.push(layout, "team/say:1")
    reference = f"{open_registry.host}/team/say:1"
    sandbox = platform.create(image=reference)
    assert sandbox["state"] == "running"
    assert sandbox["image"]["reference"] == reference
    ran = platform.http.post(f"/v1/sandboxes/{sandbox['id']}/run", json={"argv": ["/say", "hello"]}).json()
    assert ran["stdout"].split() == ["[hello]", "/srv", "1234", "blue", "true"]
    no_shell = platform.http.post(f"/v1/sandboxes/{sandbox['id']}/run", json={"shell": "true"})
    assert no_shell.json()["code"] == "no_shell"
    image = platform.http.get(f"/v1/images/{sandbox['image']['id']}").json()
    assert (image["state"], image["reference"]) == ("ready", reference)
    assert image["config"]["user"] == "1234:99"
    before = len(platform.http.get("/v1/images").json()["items"])
    assert said(platform, reference, "/say")
    assert said(platform, sandbox["image"]["id"], "/say")
    assert len(platform.http.get("/v1/images").json()["items"]) == before
    listed = platform.http.get("/v1/sandboxes", params={"image_id": sandbox["image"]["id"]}).json()["items"]
    assert [each["id"] for each in listed] == [sandbox["id"]]
    platform.http.delete(f"/v1/sandboxes/{sandbox['id']}", params={"grace_seconds": 0})


def test_operators_credentials_let_in(platform: Platform, closed_registry: Served, layout: Path) -> None:
    closed_registry.push(layout, "team/secret:1")
    assert said(platform, f"{closed_registry.host}/team/secret:1", "/say")
    for path in (platform.config.data_dir / "image-jobs").rglob("*"):
        assert not path.is_file() or PASSWORD.encode() not in path.read_bytes()
    assert not any(PASSWORD in text for text in platform.logs().values())


def test_refusals_say_why(platform: Platform, open_registry: Served, home: Path) -> None:
    arm = make_image([tar_of({"x": b"1"})], platform="linux/arm64")
    write_layout(home / "arm", (arm, "v1"))
    open_registry.push(home / "arm", "team/arm:1")
    for reference, status, code, reason in (
        (f"{open_registry.host}/team/absent:1", 422, "image_refused", "not_found"),
        (f"{open_registry.host}/team/arm:1", 422, "image_refused", "wrong_platform"),
        ("127.0.0.1:1/team/app:1", 502, "registry_unavailable", "registry_unavailable"),
        ("no-such-name", 404, "image_not_found", None),
    ):
        answer = platform.http.post("/v1/sandboxes", json={"image": reference})
        problem = answer.json()
        assert (answer.status_code, problem["code"], problem["reason"]) == (status, code, reason), problem
        if "sandbox_id" in problem:
            kept = platform.http.get(f"/v1/sandboxes/{problem['sandbox_id']}").json()
            assert (kept["state"], kept["reason"]) == ("failed", "image_unavailable")


def test_tags_move_and_sandboxes_do_not(platform: Platform, open_registry: Served, layout: Path, home: Path) -> None:
    open_registry.push(layout, "team/app:1")
    one = made(platform, registry={"reference": f"{open_registry.host}/team/app:1"}, tags=["app", "app:1"])
    assert one["state"] == "ready", one
    assert one["tags"] == ["app:1", "app:latest"]
    two = made(
        platform,
        registry={"reference": f"{open_registry.host}/team/app:1"},
        config={"env": {"COLOUR": "red"}},
        tags=["app:2"],
    )
    assert two["digest"] != one["digest"]
    sandbox = platform.create(image="app")
    assert platform.http.put("/v1/tags/app:latest", json={"image_id": two["id"]}).status_code == 200
    colour = ["/say", "x"]
    ran = platform.http.post(f"/v1/sandboxes/{sandbox['id']}/run", json={"argv": colour}).json()["stdout"]
    assert "blue" in ran
    assert "red" in said(platform, "app", *colour)
    assert platform.http.delete(f"/v1/images/{one['id']}").status_code == 204
    again = platform.http.post(f"/v1/sandboxes/{sandbox['id']}/run", json={"argv": colour}).json()["stdout"]
    assert again == ran
    assert platform.http.get("/v1/tags/app:1").status_code == 404
    assert platform.http.post("/v1/sandboxes", json={"image": one["id"]}).json()["code"] == "image_not_found"
    platform.http.delete(f"/v1/sandboxes/{sandbox['id']}", params={"grace_seconds": 0})


def upload(platform: Platform, data: bytes, part: int = 1 << 20) -> str:
    sha256 = hashlib.sha256(data).hexdigest()
    answer = httpx.Response(500)
    for offset in range(0, len(data), part):
        answer = platform.http.put(
            f"/v1/uploads/{sha256}",
            params={"offset": offset, "total_bytes": len(data)},
            content=data[offset : offset + part],
            headers={"Content-Type": "application/octet-stream"},
        )
        assert answer.is_success, answer.text
    assert answer.status_code == 201
    assert platform.http.head(f"/v1/uploads/{sha256}").headers["Upload-Offset"] == str(len(data))
    return sha256


def test_an_archive_is_uploaded_and_runs(platform: Platform, layout: Path, home: Path) -> None:
    data = pack(layout, home / "layout.tar").read_bytes()
    image = made(platform, archive={"upload": upload(platform, data, 300_000), "format": "oci"}, tags=["packed"])
    assert image["state"] == "ready", image
    assert said(platform, "packed:latest", "/say", "packed").startswith("[packed]")
    log = platform.http.get(f"/v1/images/{image['id']}/log", params={"follow": "true"}).text.splitlines()
    assert json.loads(log[-1])["kind"] == "exit"
    events = platform.http.get(f"/v1/images/{image['id']}/log", headers={"Accept": "text/event-stream"}).text
    assert "event: exit" in events


def test_a_whole_distribution_runs(platform: Platform, open_registry: Served, home: Path) -> None:
    tree = home / "debian"
    run("fsck.erofs", f"--extract={tree}", "--preserve", str(cache_dir() / "images/base.erofs"))
    run("tar", "-C", str(tree), "-cf", str(home / "debian.tar"), ".")
    layer = (home / "debian.tar").read_bytes()
    write_layout(home / "debian-layout", (make_image([layer], {"Env": ["LANG=C.UTF-8"], "User": "user"}), "v1"))
    open_registry.push(home / "debian-layout", "debian:12")
    early = platform.http.post("/v1/sandboxes", json={"image": f"{open_registry.host}/debian:12", "wait_seconds": 0})
    assert early.status_code == 201
    assert early.json()["state"] == "pending"
    assert "image" in early.json()["message"]
    sandbox = platform.settled(early.json()["id"])
    assert sandbox["state"] == "running", sandbox
    code = {"argv": ["python3", "-c", "print(6 * 7)"]}
    assert platform.http.post(f"/v1/sandboxes/{sandbox['id']}/run", json=code).json()["stdout"] == "42\n"
    platform.http.delete(f"/v1/sandboxes/{sandbox['id']}", params={"grace_seconds": 0})


def test_images_outlive_a_restart(platform: Platform, open_registry: Served, layout: Path) -> None:
    open_registry.push(layout, "team/kept:1")
    assert (
        made(platform, registry={"reference": f"{open_registry.host}/team/kept:1"}, tags=["kept"])["state"] == "ready"
    )
    platform.stop_programs()
    platform.start()
    assert said(platform, "kept", "/say", "again").startswith("[again]")
