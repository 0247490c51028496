"""The collector beside everything that makes and uses images: what is named, lived on or built stays, the rest goes."""

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from test_images_api_real import made, said
from test_registry_real import done

from harness import Platform
from harness import platform as platforms
from real_registry import Served
from registry_kit import MadeImage, make_image, tar_of, write_layout


@pytest.fixture(scope="module", name="platform")
def _platform(open_registry: Served) -> Generator[Platform]:
    with platforms(insecure_registries=f'["{open_registry.host}"]', heartbeat_seconds="1") as running:
        yield running


def stored(platform: Platform) -> set[str]:
    """Which images have a manifest in the store."""
    return {
        path.name for path in (platform.config.data_dir / "image-store/v1/images").glob("*") if any(path.rglob("*/*"))
    }


def hex_of(image: dict[str, Any]) -> str:
    return image["digest"].removeprefix("sha256:")


def collect(platform: Platform, times: int = 2) -> str:
    return "".join(done(platform, "gc", "--grace-hours", "0") for _ in range(times))


@contextmanager
def busy(platform: Platform) -> Generator[None]:
    """Have sandboxes made and images built meanwhile; none of it fails."""
    stop, failures = threading.Event(), list[str]()

    def again_and_again(work: Callable[[], None]) -> None:
        try:
            while not stop.is_set():
                work()
        except Exception as error:  # noqa: BLE001 - told below
            failures.append(repr(error))

    def create() -> None:
        assert said(platform, "named:1", "/say") == "[] / 1234  true\n"

    def build() -> None:
        steps = [{"run": f"echo {time.monotonic_ns()} > /tmp/x"}]
        assert made(platform, build={"steps": steps})["state"] == "ready"

    workers = [threading.Thread(target=again_and_again, args=(work,)) for work in (create, build)]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    assert failures == []


def test_what_somebody_has_stays_and_the_rest_goes(
    platform: Platform, open_registry: Served, home: Path, scratch: MadeImage
) -> None:
    images: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(("named", "lived-on", "gone")):
        marked = tar_of({"marker": name.encode() * 50_000})
        write_layout(home / name, (make_image([marked, scratch.layers[-1]], {"User": "1234"}), "v1"))
        open_registry.push(home / name, f"gc/{name}:{number}")
        reference = {"reference": f"{open_registry.host}/gc/{name}:{number}"}
        images[name] = made(platform, registry=reference, tags=[f"{name}:1"])
        assert images[name]["state"] == "ready", images[name]
    platform.wait_until(
        lambda: {hex_of(image) for image in images.values()} <= stored(platform), "all are in the store"
    )
    shown = images["named"]["id"]
    platform.wait_until(
        lambda: platform.http.get(f"/v1/images/{shown}").json()["unique_bytes"] is not None, "its size is known"
    )
    sandbox = platform.create(image="lived-on:1")
    for name in ("lived-on", "gone"):
        assert platform.http.delete(f"/v1/images/{images[name]['id']}").status_code == 204
    with busy(platform):
        collect(platform)
    text = collect(platform)
    assert "forget" in text
    left = stored(platform)
    assert {hex_of(images["named"]), hex_of(images["lived-on"])} <= left
    assert hex_of(images["gone"]) not in left
    answer = platform.http.post(f"/v1/sandboxes/{sandbox['id']}/run", json={"argv": ["/say"]})
    assert answer.json()["exit_code"] == 0
    platform.http.delete(f"/v1/sandboxes/{sandbox['id']}", params={"grace_seconds": 0})
    # Nobody has it now.
    platform.wait_until(lambda: collect(platform) and hex_of(images["lived-on"]) not in stored(platform), "it goes")
    assert said(platform, "named:1", "/say")
