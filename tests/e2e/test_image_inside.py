"""An image as it looks from inside a sandbox: the sentry's own reader, over a tree with everything in it."""

import hashlib
import json
import os
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from test_scratch_image import imported

from harness import Platform, cache_dir
from image_kit import Made, Tree, resolved, to_tar
from infra.setup.progress import Progress
from infra.setup.toolchain import GO_ENV, find_go
from sandboxd.images.content import UNIT_BYTES

WALKER = """
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

type row struct {
	Path, Content          string
	Mode, UID, GID         uint32
	Links, Inode           uint64
	Size, Seconds, Nanos   int64
}

func main() {
	lines := json.NewEncoder(os.Stdout)
	err := filepath.WalkDir("/t", func(path string, _ fs.DirEntry, err error) error {
		if err != nil { return err }
		var s syscall.Stat_t
		if err := syscall.Lstat(path, &s); err != nil { return err }
		r := row{hex.EncodeToString([]byte(path[2:])), "", s.Mode, s.Uid, s.Gid,
			uint64(s.Nlink), s.Ino, s.Size, s.Mtim.Sec, s.Mtim.Nsec}
		switch s.Mode & syscall.S_IFMT {
		case syscall.S_IFREG:
			data, err := os.ReadFile(path)
			if err != nil { return err }
			file, err := os.Open(path)
			if err != nil { return err }
			defer file.Close()
			if len(data) > 0 {
				mapped, err := syscall.Mmap(int(file.Fd()), 0, len(data), syscall.PROT_READ, syscall.MAP_PRIVATE)
				if err != nil { return err }
				if string(mapped) != string(data) { return fmt.Errorf("%s is mapped as something else", path) }
				syscall.Munmap(mapped)
			}
			sum := sha256.Sum256(data)
			r.Content = hex.EncodeToString(sum[:])
		case syscall.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil { return err }
			r.Content = hex.EncodeToString([]byte(target))
		}
		return lines.Encode(r)
	})
	if err != nil { fmt.Fprintln(os.Stderr, err); os.Exit(1) }
	if _, err := os.Lstat("/t/missing"); !os.IsNotExist(err) { fmt.Fprintln(os.Stderr, "missing:", err); os.Exit(1) }
}
"""

TREE: Tree = (
    {b"": Made("directory", 0o755), b"t": Made("directory", 0o1751, 7, 8, 1_234_567_890_123_456_789)}
    | {b"t/f%d" % bit: Made("file", 0o644, 1 << bit, 3, bit * 10**9 + bit, b"x" * (1 << bit % 17)) for bit in range(32)}
    | {b"t/around%d" % size: Made("file", content=b"y" * size) for size in (0, 1, 4095, 4096, 4097, 8192, UNIT_BYTES)}
    | {b"t/big": Made("file", 0o4755, content=b"start" + bytes(3 * UNIT_BYTES) + b"end")}
    | {b"t/link%d" % number: Made("link", content=b"t/f3") for number in range(3)}
    | {b"t/s%d" % size: Made("symlink", 0o777, 5, 6, 10**9, b"t" * size) for size in (1, 2000, 2048, 2049, 4000, 4095)}
    | {b"t/wide": Made("directory", 0o2750)}
    | {b"t/wide/%04d" % number + b"n" * (number % 60): Made("file", mtime_ns=number) for number in range(1500)}
    | {b"t/long": Made("directory")}
    | {b"t/long/" + b"%03d" % number * 85: Made("directory", 0o700) for number in range(60)}
    | {b"t/odd": Made("directory")}
    | {b"t/odd/" + bytes([byte]): Made("file") for byte in range(1, 256) if byte not in b"./"}
    | {b"t/odd/..x": Made("file"), b"t/odd/-": Made("file")}
    | {b"/".join([b"t", b"deep", *[b"d"] * depth]): Made("directory") for depth in range(100)}
)


@pytest.fixture(scope="module", name="walker")
def _walker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("walker")
    (home / "main.go").write_text(WALKER)
    go = find_go(Progress(home / "log"), cache_dir())
    environment = {**os.environ, **GO_ENV}
    subprocess.run([go, "build", "-o", "walk", "main.go"], cwd=home, env=environment, check=True)
    return home / "walk"


@pytest.fixture(scope="module", name="rows")
def _rows(
    platform: Platform, walker: Path, tmp_path_factory: pytest.TempPathFactory
) -> Generator[list[dict[str, Any]]]:
    archive = tmp_path_factory.mktemp("tree") / "root.tar"
    archive.write_bytes(to_tar(TREE | {b"walk": Made("file", 0o755, content=walker.read_bytes())}))
    imported(platform, archive, "everything")

    def known() -> bool:
        return platform.http.post("/v1/run", json={"image": "everything", "command": {"argv": ["/walk"]}}).is_success

    platform.wait_until(known, "the image on the node")
    made = platform.create(image="everything")
    done = platform.http.post(f"/v1/sandboxes/{made['id']}/run", json={"argv": ["/walk"]}).json()
    assert done["exit_code"] == 0, done
    yield [json.loads(line) for line in done["stdout"].splitlines()]
    platform.http.delete(f"/v1/sandboxes/{made['id']}", params={"grace_seconds": 0})


def test_every_attribute_is_what_the_tree_said(rows: list[dict[str, Any]]) -> None:
    wanted, _ = resolved(TREE)
    found = {b"t" + bytes.fromhex(row["Path"]): row for row in rows}
    assert found.keys() == wanted.keys() - {b""}
    kinds = {"file": 0o100000, "directory": 0o040000, "symlink": 0o120000}
    for path, row in found.items():
        made = wanted[path]
        assert row["Mode"] == kinds[made.kind] | made.mode, path
        assert (row["UID"], row["GID"]) == (made.uid, made.gid), path
        assert row["Seconds"] * 10**9 + row["Nanos"] == made.mtime_ns, path
        if made.kind == "file":
            assert (row["Size"], row["Content"]) == (len(made.content), hashlib.sha256(made.content).hexdigest()), path
        elif made.kind == "symlink":
            assert bytes.fromhex(row["Content"]) == made.content, path


def test_links_are_one_file(rows: list[dict[str, Any]]) -> None:
    names = {b"f3".hex(), *(f"{b'link'.hex()}{48 + number:02x}" for number in range(3))}
    linked = [row for row in rows if row["Path"].removeprefix(b"/".hex()) in names]
    assert len(linked) == 4
    assert {row["Links"] for row in linked} == {4}
    assert len({row["Inode"] for row in linked}) == 1
