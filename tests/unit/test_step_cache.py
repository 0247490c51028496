"""Which image came of which step: kept by key, forgotten after a month, and no more trusted than a file can be."""

import os
from pathlib import Path

from sandboxd.builds.cache import KEPT_SECONDS, StepCache

KEY, OTHER = "a" * 64, "b" * 64
IMAGE = "img" + "c" * 20


def test_the_last_word_counts(tmp_path: Path) -> None:
    cache = StepCache(tmp_path / "cache")
    assert cache.find(KEY) is None
    cache.put(KEY, "img" + "d" * 20)
    cache.put(KEY, IMAGE)
    assert cache.find(KEY) == IMAGE
    assert cache.find(OTHER) is None


def test_what_is_no_image_is_nothing(tmp_path: Path) -> None:
    cache = StepCache(tmp_path)
    for number, text in enumerate(["", "img", "../../etc", IMAGE + "x"]):
        (tmp_path / f"{number}").write_text(text)
        assert cache.find(f"{number}") is None
    (tmp_path / "raw").write_bytes(b"\xff\xfe")
    assert cache.find("raw") is None


def test_what_nobody_asks_for_is_forgotten(tmp_path: Path) -> None:
    cache = StepCache(tmp_path)
    cache.sweep(0)
    for key in (KEY, OTHER):
        cache.put(key, IMAGE)
        os.utime(tmp_path / key, (1000, 1000))
    (tmp_path / ".left").write_text("by a crash")
    os.utime(tmp_path / ".left", (1000, 1000))
    cache.find(KEY)
    cache.sweep(1000 + KEPT_SECONDS + 1)
    assert [path.name for path in tmp_path.iterdir()] == [KEY]
