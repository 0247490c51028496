"""COPY over trees in memory: what patterns find, where links lead, what a digest sees."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from build_kit import LIMITS, bench, listed, symlink, tar
from sandboxd.builds.copying import Copy, Copying, NothingToCopyError, leave_out
from sandboxd.builds.globs import Ignore
from sandboxd.builds.worker import Work
from sandboxd.images.content import Contents
from sandboxd.images.erofs import ImageBuildError
from sandboxd.images.filetree import FileTree
from sandboxd.images.stack import Stack
from sandboxd.images.tar_stream import ByteStream, TarStream
from sandboxd.images.tree import Tally

SOURCE = {
    "a": None,
    "a/x.py": "x",
    "a/y.txt": "y",
    "a/deep": None,
    "a/deep/z.py": "z",
    "link": symlink("a"),
    "loop": symlink("loop"),
}


class Trees:
    """A source and a target over the same contents."""

    def __init__(self, source: FileTree, contents: Contents) -> None:
        self.source = source
        self.contents = contents
        self.target = FileTree(LIMITS)

    def fill(self, tree: FileTree, rows: dict[str, Any]) -> None:
        Stack(tree, self.contents, Tally(LIMITS)).add(TarStream(ByteStream([tar(rows)])), strict=True)

    def copy(self, *sources: str, to: str, **more: Any) -> dict[str, Any]:
        copying = Copying(self.source, self.contents, Tally(LIMITS))
        copying.run(Copy(sources=sources, to=to, **more), self.target)
        return listed(self.target, self.contents)

    def digest(self, *sources: str) -> str:
        return Copying(self.source, self.contents, Tally(LIMITS)).digest(Copy(sources=sources, to="/"))


@pytest.fixture(name="trees")
def _trees(tmp_path: Path) -> Iterator[Trees]:
    with bench(tmp_path / "spool") as (source, contents, _):
        made = Trees(source, contents)
        made.fill(source, SOURCE)
        yield made


def test_a_directory_is_its_content_and_a_file_is_itself(trees: Trees) -> None:
    found = trees.copy("a", to="/d")
    assert found == {"d": None, "d/deep": None, "d/deep/z.py": "z", "d/x.py": "x", "d/y.txt": "y"}
    assert trees.copy("a/x.py", to="/d")["d/x.py"] == "x"
    assert trees.copy("a/x.py", to="/new")["new"] == "x"
    assert trees.copy("a/x.py", to="/dir/")["dir/x.py"] == "x"


def test_patterns_go_through_links_of_the_source(trees: Trees) -> None:
    assert trees.copy("link/*.py", to="/d/") == {"d": None, "d/x.py": "x"}
    assert trees.copy("**/*.py", to="/e/").keys() >= {"e/x.py", "e/z.py"}


def test_links_that_are_asked_for_are_followed_and_others_are_copied(trees: Trees) -> None:
    trees.fill(
        trees.source,
        {"dir": None, "dir/x": symlink("../a/x.py"), "far": symlink("/../../dir/x"), "gone": symlink("no")},
    )
    assert trees.copy("far", to="/f") == {"f": "x"}
    assert trees.copy("dir", to="/d")["d/x"] == "→ ../a/x.py"
    with pytest.raises(NothingToCopyError):
        trees.copy("gone", to="/g")


def test_links_of_the_target_are_followed_inside(trees: Trees) -> None:
    trees.fill(trees.target, {"real": None, "to": symlink("/../real"), "round": symlink("round")})
    found = trees.copy("link", "a/x.py", to="/to/")
    assert found["real/deep/z.py"] == "z"
    assert found["real/x.py"] == "x"
    with pytest.raises(ImageBuildError, match="without end"):
        trees.copy("a", to="/round/x")


def test_what_stands_in_the_way(trees: Trees) -> None:
    trees.fill(trees.target, {"x.py": None, "file": "f"})
    with pytest.raises(ImageBuildError, match="there is a directory"):
        trees.copy("a/x.py", to="/./x.py/..//")
    with pytest.raises(ImageBuildError, match="no directory"):
        trees.copy("a", to="/file/x")
    assert trees.copy("a/y.txt", to="/file")["file"] == "y"


@pytest.mark.parametrize("source", ["nothing", "a/*.md", "a/x.py/z", "loop/x", "[b]"])
def test_nothing_to_copy(trees: Trees, source: str) -> None:
    with pytest.raises((NothingToCopyError, ImageBuildError)):
        trees.digest(source)


def test_owners_by_name(trees: Trees) -> None:
    trees.fill(trees.target, {"etc": None, "etc/passwd": "app:x:5:6::/:\nbad:x:y:z::\n", "etc/group": "staff:x:7:\n"})
    for owner, wanted in (("app", (5, 6)), ("app:staff", (5, 7)), ("9", (9, 9)), ("9:8", (9, 8)), ("app:3", (5, 3))):
        trees.copy("a/x.py", to="/x", owner=owner)
        node = trees.target.child(0, b"x")
        assert node is not None
        assert (trees.target.uids[node], trees.target.gids[node]) == wanted
    for owner in ("who", "bad", "app:who", f"{2**32}"):
        with pytest.raises(ImageBuildError):
            trees.copy("a/x.py", to="/x", owner=owner)


def test_a_digest_is_of_what_is_taken(trees: Trees) -> None:
    whole = trees.digest("a")
    assert whole == trees.digest("a")
    assert whole != trees.digest("a/*")
    leave_out(trees.source, Ignore("a/y.txt"))
    assert whole != trees.digest("a")
    with pytest.raises(NothingToCopyError):
        trees.digest("a/y.txt")


def test_a_request_is_answered_for_each_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    context = tmp_path / "context.tar"
    context.write_bytes(tar(SOURCE))
    row = {"kind": "copy", "image": None, "to": "/", "mode": None, "owner": None}
    with context.open("rb") as file:
        request = {
            "do": "digest",
            "parent": None,
            "context": file.fileno(),
            "copies": [{**row, "sources": ["a"]}, {**row, "sources": ["nothing"]}],
            "size_bytes": 1 << 20,
            "entries": 100,
        }
        first, second = Work(request).run()["digests"]
    assert len(first["digest"]) == 64
    assert "nothing" in second["missing"]
