"""Images through Debian's own registry and skopeo, into a real platform: pulled, run, refused, removed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from harness import Platform, cache_dir
from real_registry import PASSWORD, USER, Served, run
from registry_kit import make_image, write_layout


def sandlotd(platform: Platform, *words: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "infra.sandlotd", "image", *words]
    return subprocess.run(
        command, env=dict(platform.env), input=text, capture_output=True, text=True, check=False, timeout=120
    )


def done(platform: Platform, *words: str, text: str | None = None) -> str:
    ended = sandlotd(platform, *words, text=text)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def images(platform: Platform) -> dict[str, dict[str, Any]]:
    rows = map(json.loads, done(platform, "ls", "--json").splitlines())
    return {name: row for row in rows for name in row["names"]}


def said(platform: Platform, image: str, *argv: str) -> str:
    """Run a program of an image in a sandbox of its own."""
    body = {"image": image, "command": {"argv": list(argv)}}
    answer = httpx.Response(500)

    def known() -> bool:
        nonlocal answer
        answer = platform.http.post("/v1/run", json=body)
        return answer.json().get("code") != "image_not_found"

    platform.wait_until(known, "the image on the node")
    assert answer.is_success, answer.text
    return answer.json()["stdout"]


@pytest.mark.parametrize("tool_format", ["oci", "docker"])
def test_an_image_is_pulled_and_runs(platform: Platform, open_registry: Served, layout: Path, tool_format: str) -> None:
    open_registry.push(layout, f"team/{tool_format}:1.0", tool_format)
    reference = f"{open_registry.host}/team/{tool_format}:1.0"
    shown = sandlotd(platform, "pull", reference, "--insecure", "--name", f"say-{tool_format}")
    assert shown.returncode == 0, shown.stderr
    assert f"say-{tool_format}:latest" in shown.stdout
    assert "2 layers" in shown.stderr
    assert said(platform, f"say-{tool_format}", "/say", "hi", "there") == "[hi there] /srv 1234 blue true\n"
    row = images(platform)[f"say-{tool_format}:latest"]
    assert reference in [origin["reference"] for origin in row["origins"]]
    known = json.loads(done(platform, "inspect", f"say-{tool_format}"))
    assert known["config"]["env"] == {"COLOUR": "blue"}
    assert known["config"]["labels"] == {"who": "test"}


def test_a_private_image_needs_its_password(
    platform: Platform, closed_registry: Served, layout: Path, home: Path
) -> None:
    closed_registry.push(layout, "team/secret:1.0")
    reference = f"{closed_registry.host}/team/secret:1.0"
    for words, password in (((), None), (("--username", USER, "--password-stdin"), "wrong\n")):
        refused = sandlotd(platform, "pull", reference, "--insecure", *words, text=password)
        assert refused.returncode == 1
        assert "unauthorized" in refused.stderr
        assert "wrong" not in refused.stderr
    done(
        platform, "pull", reference, "--insecure", "--name", "secret", "--username", USER, "--password-stdin",
        text=f"{PASSWORD}\n",
    )  # fmt: skip
    assert "secret:latest" in images(platform)
    auth = home / "auth.json"
    auth.touch(mode=0o600)
    auth.write_text(json.dumps({"auths": {closed_registry.host: {"username": USER, "password": PASSWORD}}}))
    settings = {
        "SANDLOT_REGISTRY_AUTH_FILE": str(auth),
        "SANDLOT_INSECURE_REGISTRIES": json.dumps([closed_registry.host]),
        "SANDLOT_DEFAULT_REGISTRY": closed_registry.host,
    }
    command = [sys.executable, "-m", "infra.sandlotd", "image", "pull", "team/secret:1.0"]
    assert "team/secret:1.0" in run(*command, env={**platform.env, **settings})


def test_what_cannot_be_had_says_why(platform: Platform, open_registry: Served, layout: Path) -> None:
    open_registry.push(layout, "team/there:1.0")
    host = open_registry.host
    for words, reason in (
        ((f"{host}/team/there:2.0", "--insecure"), "not_found"),
        ((f"{host}/team/there:1.0",), "registry_unavailable"),
        ((f"{host}/team/there:1.0", "--insecure", "--platform", "linux/riscv64"), "wrong_platform"),
        ((f"{host}/team/there@sha256:{'0' * 64}", "--insecure"), "not_found"),
        (("127.0.0.1:1/x", "--insecure"), "registry_unavailable"),
        (("Not A Reference",), "no image reference"),
    ):
        refused = sandlotd(platform, "pull", *words)
        assert (refused.returncode, reason in refused.stderr, "fix:" in refused.stderr) == (1, True, True), (
            words,
            refused.stderr,
        )


def test_archives_of_skopeo_are_imported(platform: Platform, layout: Path, open_registry: Served, home: Path) -> None:
    policy = ["skopeo", "--policy", str(open_registry.policy), "copy", "-q", f"oci:{layout}:v1"]
    run(*policy, f"docker-archive:{home}/saved.tar:say:saved")
    run(*policy, f"oci-archive:{home}/layout.tar:say:layout")
    for words in (("saved.tar", "say:saved"), ("layout.tar", "say:layout")):
        done(platform, "import", str(home / words[0]), *words[1:])
    done(platform, "import", str(layout), "say:directory")
    known = images(platform)
    assert len({known[f"say:{tag}"]["id"] for tag in ("saved", "layout", "directory")}) == 1
    assert said(platform, "say:saved", "/say") == "[] /srv 1234 blue true\n"


def test_an_image_in_use_is_not_removed(platform: Platform, layout: Path) -> None:
    done(platform, "import", str(layout), "removable:1")
    done(platform, "import", str(layout), "removable:2")
    others = [name for name in images(platform)["removable:1"]["names"] if not name.startswith("removable")]
    for name in others:
        done(platform, "rm", name)
    done(platform, "rm", "removable:2")
    assert said(platform, "removable:1", "/say")
    sandbox = platform.create(image="removable:1")
    refused = sandlotd(platform, "rm", "removable:1")
    assert (refused.returncode, "in use" in refused.stderr) == (1, True)
    platform.http.delete(f"/v1/sandboxes/{sandbox['id']}", params={"grace_seconds": 0})
    platform.wait_until(lambda: sandlotd(platform, "rm", "removable:1").returncode == 0, "the image is let go")
    assert "removable:1" not in images(platform)
    assert "there is no image" in sandlotd(platform, "rm", "removable:1").stderr


def test_a_debian_image_is_pulled_and_runs(platform: Platform, open_registry: Served, home: Path, tool: str) -> None:
    """A whole distribution: the tree of the image `base`, as one layer of a hundred megabytes."""
    tree = home / "debian"
    run("fsck.erofs", f"--extract={tree}", "--preserve", str(cache_dir() / "images/base.erofs"))
    run("tar", "-C", str(tree), "-cf", str(home / "debian.tar"), ".")
    layer = (home / "debian.tar").read_bytes()
    write_layout(home / "debian-layout", (make_image([layer], {"Env": ["LANG=C.UTF-8"], "User": "user"}), "v1"))
    open_registry.push(home / "debian-layout", "debian:12")
    done(platform, "pull", f"{open_registry.host}/debian:12", "--insecure", "--name", "debian:12")
    assert said(platform, "debian:12", "python3", "-c", "print(6 * 7)") == "42\n"
