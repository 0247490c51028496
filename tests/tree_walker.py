"""One program that tells every attribute of a tree: run on the node over what tar unpacked and over the kernel's
mount, and in a sandbox over what that sees."""

import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness import cache_dir
from infra.setup.progress import Progress
from infra.setup.toolchain import GO_ENV, find_go

Row = tuple[Any, ...]
"""Mode with type, owner, group, links, size, seconds and nanoseconds of the change, SHA-256 or target."""

PROGRAM = """
package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

func check(err error) {
	if err != nil {
		os.Stderr.WriteString(err.Error() + "\\n")
		os.Exit(1)
	}
}

func main() {
	root, to := os.Args[1], os.Args[2]
	skip := map[string]bool{}
	for _, path := range os.Args[3:] { skip[filepath.Join(root, path)] = true }
	file, err := os.Create(to)
	check(err)
	out := bufio.NewWriter(file)
	lines := json.NewEncoder(out)
	check(filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil { return err }
		if skip[path] {
			if entry.IsDir() { return filepath.SkipDir }
			return nil
		}
		var s syscall.Stat_t
		if err := syscall.Lstat(path, &s); err != nil { return err }
		content := ""
		switch s.Mode & syscall.S_IFMT {
		case syscall.S_IFREG:
			data, err := os.Open(path)
			if err != nil { return err }
			sum := sha256.New()
			if _, err := io.Copy(sum, data); err != nil { return err }
			data.Close()
			content = hex.EncodeToString(sum.Sum(nil))
		case syscall.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil { return err }
			content = hex.EncodeToString([]byte(target))
		case syscall.S_IFDIR:
			s.Size = 0
		}
		below, err := filepath.Rel(root, path)
		if err != nil { return err }
		return lines.Encode([]any{hex.EncodeToString([]byte(below)), s.Mode, s.Uid, s.Gid, s.Nlink, s.Size,
			s.Mtim.Sec, s.Mtim.Nsec, content})
	}))
	check(out.Flush())
	check(file.Close())
}
"""


def walker(home: Path) -> Path:
    """Build it."""
    home.mkdir()
    (home / "main.go").write_text(PROGRAM)
    go = find_go(Progress(home / "log"), cache_dir())
    subprocess.run([go, "build", "-o", "walk", "main.go"], cwd=home, env={**os.environ, **GO_ENV}, check=True)
    return home / "walk"


def walked(program: Path, root: Path, skip: Iterable[str]) -> dict[bytes, Row]:
    """Walk a directory of this machine."""
    said = program.parent / "rows"
    subprocess.run([str(program), str(root), str(said), *skip], check=True, timeout=280)
    return read_rows(said.read_text())


def read_rows(text: str) -> dict[bytes, Row]:
    """Read what it wrote, by path from the root."""
    return {bytes.fromhex(path): tuple(row) for path, *row in map(json.loads, text.splitlines())}


def unpacked(layout: Path, target: Path) -> Path:
    """Lay an image's layers over each other as tar does, whiteouts by the book."""
    index = json.loads((layout / "index.json").read_bytes())
    manifest = json.loads(_blob(layout, index["manifests"][0]["digest"]).read_bytes())
    target.mkdir()
    for layer in manifest["layers"]:
        archive = _blob(layout, layer["digest"])
        listed = subprocess.run(
            ["tar", "-tzf", str(archive), "--quoting-style=literal"], capture_output=True, check=True, timeout=280
        )
        for name in listed.stdout.splitlines():
            _take_away(os.fsencode(target), name)
        unpack = ["tar", "-xzpf", str(archive), "-C", str(target), "--numeric-owner", "--same-owner"]
        # Devices are none of an image's; what hides something is no file.
        subprocess.run(
            [*unpack, "--delay-directory-restore", "--exclude=.wh.*", "--exclude=./dev/*", "--exclude=dev/*"],
            check=True,
            timeout=280,
        )
    return target


def _take_away(root: bytes, name: bytes) -> None:
    directory, _, last = name.rstrip(b"/").rpartition(b"/")
    if last == b".wh..wh..opq":
        subprocess.run(["find", root + b"/" + directory, "-mindepth", "1", "-delete"], check=True)
    elif last.startswith(b".wh."):
        subprocess.run(["rm", "-rf", "--", root + b"/" + directory + b"/" + last[4:]], check=True)


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs/sha256" / digest.removeprefix("sha256:")
