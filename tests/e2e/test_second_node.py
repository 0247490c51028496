"""One store behind two nodes: what the first took in from a registry, the second starts when that is switched off."""

import json
import os
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest
from test_registry_real import done, images, said, sandlotd

from harness import Platform, cache_dir, platform
from infra.setup import tools_for_tests
from infra.setup.progress import Progress
from infra.setup.toolchain import GO_ENV, find_go
from packs_kit import ACCESS, SECRET, s3_server
from real_registry import PROGRAM, registry, run
from registry_kit import make_image, tar_of, write_layout


@pytest.fixture(scope="module", name="home")
def _home() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="sandlot-second-", dir="/var/tmp") as home:
        yield Path(home)


@pytest.fixture(scope="module", name="layout")
def _layout(home: Path) -> Path:
    """One static program and something large beside it."""
    sources = home / "program"
    sources.mkdir()
    (sources / "main.go").write_text(PROGRAM)
    go = find_go(Progress(home / "logs"), cache_dir())
    run(go, "build", "-o", str(sources / "say"), str(sources / "main.go"), env={**os.environ, **GO_ENV})
    layer = tar_of({"say": ((sources / "say").read_bytes(), 0o755), "srv/": b"", "srv/large": os.urandom(20 << 20)})
    settings = {"Env": ["COLOUR=blue"], "WorkingDir": "/srv", "User": "1234:99"}
    return write_layout(home / "layout", (make_image([layer], settings), "v1"))


@pytest.fixture(params=["directory", "bucket"], name="store")
def _store(request: pytest.FixtureRequest, home: Path) -> Generator[dict[str, str]]:
    if request.param == "directory":
        yield {"image_store": str(home / "store")}
        return
    auth = home / "bucket-auth.json"
    auth.touch(mode=0o600)
    auth.write_text(json.dumps({"access_key_id": ACCESS, "secret_access_key": SECRET}))
    with s3_server(home / "s3") as server:
        server.bucket("images")
        yield {
            "image_store": "s3://images/of/sandlot",
            "image_store_endpoint": server.endpoint,
            "image_store_auth_file": str(auth),
        }


def test_the_second_node_needs_nothing_but_the_store(home: Path, layout: Path, store: dict[str, str]) -> None:
    tool = tools_for_tests.provide(Progress(home / "logs"), cache_dir())
    place = home / f"registry-{'bucket' if 'image_store_endpoint' in store else 'directory'}"
    with registry(tool, place, None) as served, platform(**store) as first:
        served.push(layout, "team/say:1")
        done(first, "pull", f"{served.host}/team/say:1", "--insecure", "--name", "say")
        row = images(first)["say:latest"]
        assert row["unique_bytes"] > 20 << 20
        assert said(first, "say", "/say", "one") == "[one] /srv 1234 blue true\n"
        log = (first.config.logs_dir / "node.log").read_text()
    # The registry and everything of the first node are gone now.
    with platform(**store) as second:
        done(second, "fetch", row["digest"], "say")
        assert images(second)["say:latest"]["id"] == row["id"]
        assert said(second, "say", "/say", "two") == "[two] /srv 1234 blue true\n"
        assert "0 objects" in done(second, "gc", "--dry-run").splitlines()[0]
        log += (second.config.logs_dir / "node.log").read_text()
        _check_damage(second, row["digest"], store)
    assert SECRET not in log


def _check_damage(second: Platform, digest: str, store: dict[str, str]) -> None:
    """A file that rots or goes is had again; with the store gone too, nothing starts, and the answer says why."""
    path = second.config.images_dir / f"{digest.removeprefix('sha256:')}.erofs"
    path.unlink()
    assert said(second, "say", "/say", "three") == "[three] /srv 1234 blue true\n"
    path.unlink()
    if "image_store_endpoint" in store:
        return
    root = Path(store["image_store"])
    aside = root.with_name("aside")
    root.rename(aside)
    answer = second.http.post("/v1/sandboxes", json={"image": "say"})
    assert (answer.status_code, answer.json()["code"]) == (503, "image_unavailable"), answer.text
    aside.rename(root)
    assert said(second, "say", "/say", "four") == "[four] /srv 1234 blue true\n"
    _check_collection(second, root / "v1/images" / digest.removeprefix("sha256:"))


def _check_collection(second: Platform, manifests: Path) -> None:
    """What the first node said it has is still kept; with that forgotten, removing the image frees its content.

    The image of set-up may be on its way into the store meanwhile, and stays.
    """
    assert _files(manifests)
    assert sandlotd(second, "rm", "say").returncode == 0
    assert "0 objects" in done(second, "gc", "--grace-hours", "0").splitlines()[1]
    root = Path(second.env["SANDLOT_IMAGE_STORE"])
    shutil.rmtree(root / "v1/nodes")
    for _ in range(4):
        done(second, "gc", "--grace-hours", "0")
    assert _files(manifests) == []
    known = {row["id"] for row in images(second).values()}
    assert len(_files(root / "v1/images")) <= len(known)


def _files(place: Path) -> list[Path]:
    return [path for path in place.rglob("*") if path.is_file()]
