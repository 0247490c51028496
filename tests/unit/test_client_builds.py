"""Images built by code: what is asked for, and what is packed along."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from sandboxd.builds.globs import Ignore as NodesIgnore
from sandlot import ConfigurationError
from sandlot._context import Files, write
from sandlot._ignore import Ignore
from sandlot.images import Image
from sandlot.models import Resources

RULES = (
    "node_modules\n*.log",
    "**/*.log\n!keep.log",
    "*\n!src\nsrc/**/tmp",
    "# x\n/a/\n!a/b\n[x-z]*",
    "a?c\n\\!b",
)
PATHS = (
    *("a", "a/b", "a/b/c", "x.log", "keep.log", "d/x.log", "src/a"),
    *("src/q/tmp", "node_modules/x", "abc", "!b", "zebra"),
)


@pytest.mark.parametrize("rules", RULES)
def test_client_and_node_leave_out_the_same(rules: str) -> None:
    mine, nodes = Ignore(rules), NodesIgnore(rules)
    assert [mine.ignores(path.encode()) for path in PATHS] == [nodes.ignores(path.encode()) for path in PATHS]


def packed(*files: Files) -> dict[str, tuple[bytes, str]]:
    buffer = io.BytesIO()
    write(buffer, files)
    buffer.seek(0)
    with tarfile.open(fileobj=buffer) as archive:
        return {info.name: (info.type, info.linkname) for info in archive}


def test_steps_are_asked_for_in_order(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "x.whl").write_text("w")
    image = (
        Image.debian()
        .apt_install("git")
        .pip_install("numpy", "pandas")
        .npm_install("n")
        .run("echo hi")
        .run(["a", "b"])
        .copy(tmp_path / "x.whl", "/tmp/")
        .copy(tmp_path / "app", "/srv", owner="user", ignore=["*.pyc"])
        .env(A="1")
        .workdir("/srv")
        .user("user")
        .with_build(resources=Resources(cpus=2), egress="blocked", no_cache=True, timeout_seconds=60)
    )
    build = image.source["build"]
    assert build["steps"] == [
        {"apt_install": ["git"]},
        {"pip_install": ["numpy", "pandas"]},
        {"npm_install": ["n"]},
        {"run": "echo hi"},
        {"run": ["a", "b"]},
        {"copy": {"from": "c0/x.whl", "to": "/tmp/"}},
        {"copy": {"from": "c1", "to": "/srv", "owner": "user"}},
        {"env": {"A": "1"}},
        {"workdir": "/srv"},
        {"user": "user"},
    ]
    assert (build["from"], build["egress"], build["no_cache"], build["timeout_seconds"]) == (
        *("base", {"mode": "blocked"}, True),
        60,
    )
    assert [files.name for files in image.files] == ["c0/x.whl", "c1"]


def test_each_step_is_an_image_of_its_own() -> None:
    start = Image.base()
    one, two = start.run("one"), start.run("two")
    assert start.source["build"]["steps"] == []
    assert (len(one.source["build"]["steps"]), len(two.source["build"]["steps"])) == (1, 1)


def test_steps_go_on_a_registrys_image_and_on_nothing_else(tmp_path: Path) -> None:
    assert Image.from_registry("r.example/a:1").run("x").source == {
        "build": {"from": "r.example/a:1", "steps": [{"run": "x"}]}
    }
    (tmp_path / "Dockerfile").write_text("FROM base\n")
    for image in (Image.from_archive("x.tar"), Image.from_dockerfile(tmp_path / "Dockerfile")):
        with pytest.raises(ConfigurationError):
            image.run("x")


def test_a_dockerfile_takes_its_directory_along(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM base\nCOPY . /\n")
    image = Image.from_dockerfile(tmp_path / "Dockerfile", build_args={"A": "1"}, target="t")
    assert image.source["build"] == {"dockerfile": "FROM base\nCOPY . /\n", "build_args": {"A": "1"}, "target": "t"}
    assert image.files == (Files("", tmp_path),)


def test_what_is_packed(tmp_path: Path) -> None:
    (tmp_path / "src" / "deep").mkdir(parents=True)
    for name in ("a.py", "b.tmp", "src/c.py", "src/deep/d.tmp"):
        (tmp_path / name).write_text(name)
    (tmp_path / "link").symlink_to("a.py")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / ".dockerignore").write_text("**/*.tmp\n")
    assert packed(Files("", tmp_path)).keys() == {".dockerignore", "a.py", "link", "src", "src/c.py", "src/deep"}
    found = packed(Files("c0", tmp_path, ("src", "!src/c.py")), Files("c1/a.py", tmp_path / "a.py"))
    assert found.keys() == {"c0/.dockerignore", "c0/a.py", "c0/link", "c0/src/c.py", "c1/a.py"}
    assert found["c0/link"] == (tarfile.SYMTYPE, "a.py")
    with pytest.raises(ConfigurationError):
        packed(Files("x", tmp_path / "gone"))


def test_the_same_files_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for file in ("b", "a", "c"):
            (tmp_path / name / file).write_text(file)
            os.utime(tmp_path / name / file, (1000, 1000))
    first, second = io.BytesIO(), io.BytesIO()
    write(first, [Files("", tmp_path / "one")])
    write(second, [Files("", tmp_path / "two")])
    assert first.getvalue() == second.getvalue()
