"""What it costs to make an image: against unpacking the same archive and mkfs.erofs, and a million tiny files."""

import asyncio
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from harness import Platform
from raw_sandbox import RawBox
from report import Row, median
from sandboxd.images.layers import LayerFile, build_from_layers
from sandboxd.images.tree import ImportLimits

FILES = 30_000
BYTES = 1 << 30
ROUNDS = 3
TINY = 1_000_000
_PIECE = 1 << 20


async def images(platform: Platform, raw: RawBox) -> list[Row]:
    """Layers to an image file, synced to the disk."""
    del platform, raw
    return await asyncio.to_thread(_measure)


def _measure() -> list[Row]:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as scratch:
        home = Path(scratch)
        rows: list[Row] = []
        plain = home / "layer.tar"
        write(plain, some_gib())
        subprocess.run(["gzip", "-1", "--keep", str(plain)], check=True)
        for source, what in ((plain, "tar"), (home / "layer.tar.gz", "tar.gz")):
            ours: list[float] = []
            theirs: list[float] = []
            memory = 0.0
            for _ in range(ROUNDS):
                seconds, memory = _ours(home, source)
                ours.append(seconds)
                theirs.append(_theirs(home, source))
            name = f"image from a {what}, 1 GiB in {FILES} files"
            rows += [
                Row(
                    name=name, unit="s", value=median(ours), baseline=median(theirs), baseline_name="tar -x, mkfs.erofs"
                ),
                Row(name=f"{name}: peak memory", unit="MiB", value=memory),
            ]
        tiny = home / "tiny.tar"
        write(tiny, ((f"d{number // 1000:04}/f{number:07}", b"%08d" % number) for number in range(TINY)))
        seconds, memory = _ours(home, tiny)
        name = f"image of {TINY} tiny files"
        return [
            *rows,
            Row(name=name, unit="s", value=seconds),
            Row(name=f"{name}: peak memory", unit="MiB", value=memory),
        ]


def _ours(home: Path, source: Path) -> tuple[float, float]:
    ended = subprocess.run([sys.executable, __file__, str(source), str(home)], check=True, capture_output=True)
    seconds, memory = json.loads(ended.stdout)
    return seconds, memory


def _theirs(home: Path, source: Path) -> float:
    tree, target = home / "tree", home / "image"
    tree.mkdir()
    begun = time.perf_counter()
    subprocess.run(["tar", "-xf", str(source), "-C", str(tree)], check=True)
    command = ["mkfs.erofs", "--quiet", "-x-1", "-Enoinline_data", str(target), str(tree)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["sync", str(target)], check=True)
    with target.open("rb") as file:  # an image is known by its digest: ours has it by then
        hashlib.file_digest(file, "sha256")
    taken = time.perf_counter() - begun
    subprocess.run(["rm", "-rf", str(tree), str(target)], check=True)
    return taken


def some_gib() -> Iterator[tuple[str, bytes]]:
    """Sizes as root file systems have them: most files tiny, most bytes in a few; half of it noise, half of it text."""
    left = BYTES
    for number in range(FILES):
        mixed = int.from_bytes(hashlib.sha256(b"%d" % number).digest()[:4], "big") / 2**32
        size = min(int(600 / (1.003 - mixed) ** 0.9), left) if number < FILES - 60 else left // (FILES - number)
        left -= size
        noise = hashlib.shake_256(b"%d" % number).digest(size // 2)
        yield f"usr/lib/{number // 40}/{number}", noise + (b"text of %d\n" % number) * ((size - len(noise)) // 10)


def write(path: Path, files: Iterator[tuple[str, bytes]]) -> None:
    with path.open("wb", buffering=_PIECE) as out:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1_700_000_000
            out.write(info.tobuf(tarfile.USTAR_FORMAT))
            out.write(data)
            out.write(bytes(-len(data) % 512))
        out.write(bytes(io.DEFAULT_BUFFER_SIZE))


def _child(source: Path, home: Path) -> None:
    target = home / "image"
    layer = LayerFile(source, "application/vnd.oci.image.layer.v1.tar", None)
    begun = time.perf_counter()
    build_from_layers([layer], target, spool=home, limits=ImportLimits())
    subprocess.run(["sync", str(target)], check=True)
    taken = time.perf_counter() - begun
    target.unlink()
    # The kernel's other number, of getrusage, begins with what the parent had.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    print(json.dumps([taken, int(peak.split()[1]) / 1024]))


if __name__ == "__main__":
    _child(Path(sys.argv[1]), Path(sys.argv[2]))
