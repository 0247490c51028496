"""Real images through real tools: made by buildah, pushed by skopeo, pulled from Debian's own registry, run, and
compared with what tar makes of the same layers, to the last attribute."""

import json
import shutil
import stat
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from harness import Platform, cache_dir, eventually
from harness import platform as platforms
from image_kit import mounted
from infra.setup import images_for_tests, tools_for_tests
from infra.setup.images_for_tests import NAMES
from infra.setup.progress import Progress
from packs_kit import ACCESS, S3, SECRET, s3_server
from real_registry import PASSWORD, USER, Served, registry, run, token_registry
from tree_walker import Row, read_rows, unpacked, walked, walker

PROGRAMS: dict[str, tuple[list[str], str]] = {
    "debian": (["bash", "-c", ". /etc/os-release; echo $VERSION_CODENAME; apt-get --version | head -1"], "bookworm"),
    "python": (["python3", "-c", "import ssl, sqlite3, os; print(sqlite3.sqlite_version_info[0], os.getcwd())"], "3 "),
    "node": (["node", "-e", "console.log(require('crypto').createHash('md5').update('x').digest('hex'))"], "9dd4e46"),
    "static": (["/hello"], "Europe/Berlin <nil> true"),
    "large": (
        ["bash", "-c", "cd /tmp; echo 'int main(){return 42;}' > a.c; clang a.c; ./a.out; echo $?; javac -version"],
        "42\njavac 17",
    ),
}
MOUNTS = ("proc", "sys", "dev", "etc/hosts", "etc/hostname", "etc/resolv.conf", ".walk", ".sandlot")
"""What every sandbox has of its own."""


@pytest.fixture(scope="module", name="home")
def _home() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="sandlot-acceptance-", dir="/var/tmp") as home:
        yield Path(home)


@pytest.fixture(scope="module", name="layouts")
def _layouts(home: Path) -> Path:
    return Path(images_for_tests.provide(Progress(home / "logs"), cache_dir()))


@pytest.fixture(scope="module", name="tool")
def _tool(home: Path) -> str:
    return tools_for_tests.provide(Progress(home / "logs"), cache_dir())


@pytest.fixture(scope="module", name="open_registry")
def _open_registry(home: Path, tool: str, layouts: Path) -> Generator[Served]:
    with registry(tool, home / "open", None) as served:
        filled(served, layouts)
        yield served


@pytest.fixture(scope="module", name="closed_registry")
def _closed_registry(home: Path, tool: str, layouts: Path) -> Generator[Served]:
    with registry(tool, home / "closed", PASSWORD) as served:
        filled(served, layouts)
        yield served


@pytest.fixture(scope="module", name="token_registry")
def _token_registry(home: Path, tool: str, layouts: Path) -> Generator[Served]:
    with token_registry(tool, home / "token", PASSWORD) as served:
        filled(served, layouts)
        yield served


@pytest.fixture(scope="module", name="bucket")
def _bucket(home: Path) -> Generator[dict[str, str]]:
    auth = home / "bucket-auth.json"
    auth.touch(mode=0o600)
    auth.write_text(json.dumps({"access_key_id": ACCESS, "secret_access_key": SECRET}))
    with s3_server(home / "s3") as server:
        yield in_bucket(server, auth)


def in_bucket(server: S3, auth: Path) -> dict[str, str]:
    server.bucket("images")
    return {
        "image_store": "s3://images/of/sandlot",
        "image_store_endpoint": server.endpoint,
        "image_store_auth_file": str(auth),
    }


@pytest.fixture(scope="module", name="platform")
def _platform(
    home: Path, bucket: dict[str, str], open_registry: Served, closed_registry: Served, token_registry: Served
) -> Generator[Platform]:
    guarded = (closed_registry.host, token_registry.host)
    auth = home / "auth.json"
    auth.write_text(json.dumps({"auths": {host: {"username": USER, "password": PASSWORD} for host in guarded}}))
    auth.chmod(0o600)
    with platforms(
        insecure_registries=json.dumps([open_registry.host, *guarded]),
        registry_auth_file=str(auth),
        **bucket,
    ) as running:
        yield running


def filled(served: Served, layouts: Path) -> None:
    for name, tag in NAMES.items():
        served.push(layouts / name, f"team/{name}:{tag}")


def started(platform: Platform, image: str) -> dict[str, Any]:
    """A sandbox of an image that may take minutes to come."""
    sandbox = platform.create(image=image, wait_seconds=60)

    def runs() -> bool:
        sandbox.update(platform.http.get(f"/v1/sandboxes/{sandbox['id']}").json())
        assert sandbox["state"] not in {"failed", "stopped"}, sandbox
        return sandbox["state"] == "running"

    eventually(runs, f"a sandbox of {image}", within=280)
    return sandbox


def ended(platform: Platform, sandbox: dict[str, Any]) -> None:
    platform.http.delete(f"/v1/sandboxes/{sandbox['id']}", params={"grace_seconds": 0})


def ran(platform: Platform, sandbox: dict[str, Any], argv: list[str], **fields: Any) -> str:
    answer = platform.http.post(f"/v1/sandboxes/{sandbox['id']}/run", json={"argv": argv, **fields})
    assert answer.is_success, answer.text
    done = answer.json()
    assert done["exit_code"] == 0, done
    return done["stdout"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", ["open", "closed", "token"])
def test_every_image_starts_by_its_reference_and_runs_its_programs(
    platform: Platform, request: pytest.FixtureRequest, name: str, where: str
) -> None:
    served: Served = request.getfixturevalue(f"{where}_registry")
    sandbox = started(platform, f"{served.host}/team/{name}:{NAMES[name]}")
    argv, wanted = PROGRAMS[name]
    assert wanted in ran(platform, sandbox, argv, timeout_seconds=120)
    ended(platform, sandbox)


@pytest.mark.parametrize("name", NAMES)
def test_unpacked_mounted_and_seen_from_inside_are_the_same(
    platform: Platform, open_registry: Served, home: Path, layouts: Path, name: str
) -> None:
    program = walker(home / f"walker-{name}")
    sandbox = started(platform, f"{open_registry.host}/team/{name}:{NAMES[name]}")
    inside = seen_inside(platform, sandbox, program)
    image = platform.http.get(f"/v1/images/{sandbox['image']['id']}").json()
    file = platform.config.images_dir / f"{image['digest'].removeprefix('sha256:')}.erofs"
    with mounted(file, home / "mnt") as root:
        kernel = walked(program, root, MOUNTS)
    tree = unpacked(layouts / name, home / "tree")
    wanted = walked(program, tree, MOUNTS)
    shutil.rmtree(tree)
    assert len(wanted) > (3000 if name != "static" else 500)
    found = differences(wanted, kernel)
    assert found == [], found
    found = differences(merged(wanted), merged(inside))
    assert found == [], found
    ended(platform, sandbox)


def seen_inside(platform: Platform, sandbox: dict[str, Any], program: Path) -> dict[bytes, Row]:
    """Walk it by a program put there, as root."""
    calls = f"/v1/sandboxes/{sandbox['id']}"
    put = platform.http.put(
        f"{calls}/files", params={"path": "/.walk/walk", "mode": "0755", "user": "0"}, content=program.read_bytes()
    )
    assert put.is_success, put.text
    ran(platform, sandbox, ["/.walk/walk", "/", "/.walk/rows", *MOUNTS], user="0", cwd="/", timeout_seconds=250)
    got = platform.http.get(f"{calls}/files", params={"path": "/.walk/rows", "user": "0"})
    assert got.is_success, got.text
    return read_rows(got.text)


def merged(rows: dict[bytes, Row]) -> dict[bytes, Row]:
    """Of a directory that may have two layers nobody counts the links: it has one, here as in Linux' overlayfs."""
    return {path: (*row[:3], 1, *row[4:]) if stat.S_ISDIR(row[0]) else row for path, row in rows.items()}


def differences(wanted: dict[bytes, Row], found: dict[bytes, Row]) -> list[Any]:
    """What is not the same. The root has a directory more, /etc files of the sandbox's: their times are of now."""
    paths = sorted(wanted.keys() | found.keys())
    changed = {b".": 3, b"": 3, b"etc": 3}
    rows = ((path, wanted.get(path), found.get(path)) for path in paths)
    return [
        (path, one, other)
        for path, one, other in rows
        if one is None or other is None or one[: changed.get(path)] != other[: changed.get(path)]
    ][:20]


def test_the_second_node_starts_them_all_with_the_registry_switched_off(
    home: Path, tool: str, layouts: Path, bucket: dict[str, str]
) -> None:
    digests: dict[str, str] = {}
    with registry(tool, home / "passing", None) as served:
        filled(served, layouts)
        with platforms(insecure_registries=json.dumps([served.host]), heartbeat_seconds="1", **bucket) as first:
            for name, tag in NAMES.items():
                sandbox = started(first, f"{served.host}/team/{name}:{tag}")
                image = first.http.get(f"/v1/images/{sandbox['image']['id']}").json()
                digests[name] = image["digest"]
                ended(first, sandbox)
            eventually(lambda: stored_by(first) >= set(digests.values()), "all are in the store", within=280)
    with platforms(heartbeat_seconds="1", **bucket) as second:
        for name, digest in digests.items():
            done(second, "fetch", digest, f"other-{name}")
        second.wait_until(lambda: named_by(second) >= {f"other-{name}:latest" for name in NAMES}, "the api knows them")
        for name in NAMES:
            sandbox = started(second, f"other-{name}")
            argv, wanted = PROGRAMS[name]
            assert wanted in ran(second, sandbox, argv, timeout_seconds=120)
            ended(second, sandbox)
        # Of what a node has, nothing is condemned.
        assert "0 objects" in done(second, "gc", "--dry-run").splitlines()[0]


def named_by(platform: Platform) -> set[str]:
    """Which names of images the api knows."""
    return {tag for image in platform.http.get("/v1/images").json()["items"] for tag in image["tags"]}


def stored_by(platform: Platform) -> set[str]:
    """Which images of a node are in the store."""
    rows = map(json.loads, done(platform, "ls", "--json").splitlines())
    return {row["digest"] for row in rows if row["unique_bytes"] is not None}


def done(platform: Platform, *words: str) -> str:
    return run(sys.executable, "-m", "infra.sandlotd", "image", *words, env=dict(platform.env))
