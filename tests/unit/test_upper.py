"""A difference laid over a tree, as overlays write it and as strangers would."""

import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from build_kit import GONE, LIMITS, OPAQUE, bench, link, listed, symlink, tar
from sandboxd.builds.upper import Upper
from sandboxd.images.erofs import ImageBuildError
from sandboxd.images.stack import Dropped, Stack
from sandboxd.images.tar_stream import ByteStream, TarStream
from sandboxd.images.tree import Tally

BELOW = {
    "etc": None,
    "etc/issue": "old",
    "etc/hosts": "h",
    "doc": None,
    "doc/a": "1",
    "doc/b": "2",
    "bin": symlink("usr/bin"),
}


def laid(
    place: Path, below: dict[str, Any], upper: dict[str, Any], exclude: tuple[str, ...] = ()
) -> tuple[Any, Dropped]:
    with bench(place / "spool") as (tree, contents, _):
        Stack(tree, contents, Tally(LIMITS)).add(TarStream(ByteStream([tar(below)])), strict=True)
        dropped = Dropped()
        Upper(tree, contents, Tally(LIMITS), dropped).apply(TarStream(ByteStream([tar(upper)])), exclude)
        return listed(tree, contents), dropped


def test_what_is_new_changed_and_gone(tmp_path: Path) -> None:
    found, dropped = laid(
        tmp_path,
        BELOW,
        {
            "./": None,
            "./etc/": None,
            "./etc/issue": GONE,
            "./etc/new": "n",
            "./doc": GONE,
            "./top": "t",
            "./etc/hosts": "ours",
        },
    )
    assert found == {"etc": None, "etc/new": "n", "etc/hosts": "h", "bin": "→ usr/bin", "top": "t"}
    assert dict(dropped) == {}


def test_many_names_share_one_mark_of_what_is_gone(tmp_path: Path) -> None:
    """As runsc writes it: the first is a device, the others are hard links to that."""
    found, _ = laid(
        tmp_path, BELOW, {"./etc/hosts": GONE, "./etc/issue": link("./etc/hosts"), "./doc/a": link("./etc/hosts")}
    )
    assert found == {"etc": None, "etc/hosts": "h", "doc": None, "doc/b": "2", "bin": "→ usr/bin"}


def test_an_opaque_directory_hides_what_was_in_it(tmp_path: Path) -> None:
    found, dropped = laid(tmp_path, BELOW, {"./doc": OPAQUE, "./doc/c": "3"})
    assert {path for path in found if path.startswith("doc")} == {"doc", "doc/c"}
    assert dict(dropped) == {}


def test_order_does_not_matter_and_hard_links_stay_links(tmp_path: Path) -> None:
    rows = {"./x/b": link("./y/a"), "./y/a": "same", "./y": None, "./x": None}
    for order in (list(rows), list(reversed(rows))):
        if order.index("./y/a") < order.index("./x/b"):
            found, _ = laid(tmp_path, {}, {name: rows[name] for name in order})
            assert found == {"x": None, "x/b": "same", "y": None, "y/a": "same"}


def test_names_that_mean_something_in_layers_are_names_here(tmp_path: Path) -> None:
    found, _ = laid(tmp_path, BELOW, {"./etc": None, "./etc/.wh.issue": "x", "./\udcff": "y"})
    assert found["etc/.wh.issue"] == "x"
    assert found["etc/issue"] == "old"
    assert found["\udcff"] == "y"


def test_what_no_image_holds_is_counted(tmp_path: Path) -> None:
    found, dropped = laid(
        tmp_path,
        BELOW,
        {
            "./p": {"type": tarfile.FIFOTYPE},
            "./d": {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3},
            "./c": {"data": b"x", "pax_headers": {"SCHILY.xattr.security.capability": "v"}},
        },
    )
    assert "p" not in found
    assert dict(dropped) == {"pipes": 1, "devices": 1, "file capabilities": 1}


def test_what_is_ours_and_what_is_excluded_stays_out(tmp_path: Path) -> None:
    found, _ = laid(
        tmp_path,
        BELOW,
        {
            "./.sandlot": None,
            "./.sandlot/x": "1",
            "./proc": None,
            "./proc/x": "1",
            "./doc": None,
            "./doc/a": "new",
            "./tmp": None,
            "./tmp/x": "1",
        },
        ("tmp/*", "doc/a"),
    )
    assert found == {
        "bin": "→ usr/bin",
        "doc": None,
        "doc/a": "1",
        "doc/b": "2",
        "etc": None,
        "etc/hosts": "h",
        "etc/issue": "old",
        "proc": None,
        "tmp": None,
    }


@pytest.mark.parametrize(
    "upper",
    [
        {"./bin/x": "through a link"},
        {"./etc/issue/x": "through a file"},
        {"./nowhere/x": "through nothing"},
        {"./../x": "out"},
        {"./a": link("./b"), "./b": link("./a")},
        {"./a": link("./etc/shadow")},
        {"./a": {"data": b"x", "size": 1, "uid": 2**32 - 1}},
    ],
)
def test_what_no_overlay_can_have_written_is_refused(tmp_path: Path, upper: dict[str, Any]) -> None:
    with pytest.raises(ImageBuildError):
        laid(tmp_path, BELOW, upper)


names = st.sampled_from(["a", "b", "c"])
paths = st.lists(names, min_size=1, max_size=3).map("/".join)


def _grown(entries: dict[str, str | None]) -> dict[str, str | None]:
    """A tree: parents are directories, and come first."""
    tree: dict[str, str | None] = {}
    for path in sorted(entries):
        parents = ["/".join(path.split("/")[:count]) for count in range(1, path.count("/") + 1)]
        if all(tree.setdefault(parent, None) is None for parent in parents):
            tree[path] = entries[path]
    return tree


trees = st.dictionaries(paths, st.one_of(st.none(), st.sampled_from(["1", "2"]))).map(_grown)


def _difference(below: dict[str, str | None], above: dict[str, str | None]) -> dict[str, Any]:
    """What an overlay would have written on the way from one tree to another."""
    upper: dict[str, Any] = {}
    for path, value in above.items():
        if path in below and below[path] == value:
            if value is None:
                upper[path] = None
            continue
        upper[path] = OPAQUE if value is None and path in below and below[path] is not None else value
    for path in below:
        parent = path.rpartition("/")[0]
        if path not in above and (not parent or above.get(parent, "") is None):
            upper[path] = GONE
    return upper


@given(trees, trees)
def test_a_difference_leads_from_one_tree_to_the_other(tmp_path_factory: Any, below: Any, above: Any) -> None:
    found, _ = laid(tmp_path_factory.getbasetemp(), below, _difference(below, above))
    assert found == dict(sorted(above.items()))
