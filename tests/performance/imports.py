"""What it costs to take in an image of 1 GB: against `skopeo copy` and unpacking its layer, which is no image yet."""

import asyncio
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import Platform
from images import BYTES, FILES, some_gib, write
from raw_sandbox import RawBox
from report import Row, median
from sandboxd.images.intake import Intake
from sandboxd.images.layouts import FileSource
from sandboxd.images.manifests import Platform as ImagePlatform
from sandboxd.images.store import ImageStore

ROUNDS = 3
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


async def imports(platform: Platform, raw: RawBox) -> list[Row]:
    """An OCI layout of one layer to an image that is known, and on the disk."""
    del platform, raw
    return await asyncio.to_thread(_measure)


def _measure() -> list[Row]:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as scratch:
        home = Path(scratch)
        layout = _layout(home)
        ours: list[float] = []
        theirs: list[float] = []
        memory = other = 0.0
        for _ in range(ROUNDS):
            seconds, memory = _ours(home, layout)
            ours.append(seconds)
            seconds, other = _theirs(home, layout)
            theirs.append(seconds)
        name = f"import of an image, {BYTES / 1e9:.1f} GB in {FILES} files"
        against, note = "skopeo copy, tar -x", "ours is on the disk then, and known by its digest; theirs is neither"
        return [
            Row(name=name, unit="s", value=median(ours), baseline=median(theirs), baseline_name=against, note=note),
            Row(name=f"{name}: peak memory", unit="MiB", value=memory, baseline=other, baseline_name=against),
        ]


def _layout(home: Path) -> Path:
    layout = home / "layout"
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True)
    plain, packed = home / "layer.tar", home / "layer.tar.gz"
    write(plain, some_gib())
    identity = _digest(plain)
    subprocess.run(["gzip", "-1", str(plain)], check=True)
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [identity]}}
    layer = {"mediaType": _LAYER, "digest": _digest(packed), "size": packed.stat().st_size}
    packed.rename(blobs / str(layer["digest"]).removeprefix("sha256:"))
    described = _blob(blobs, config) | {"mediaType": _CONFIG}
    manifest = {"schemaVersion": 2, "mediaType": _MANIFEST, "config": described, "layers": [layer]}
    row = _blob(blobs, manifest) | {"mediaType": _MANIFEST, "annotations": {"org.opencontainers.image.ref.name": "x"}}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [row]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return layout


def _blob(blobs: Path, document: object) -> dict[str, str | int]:
    data = json.dumps(document).encode()
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _ours(home: Path, layout: Path) -> tuple[float, float]:
    place = home / "ours"
    ended = subprocess.run([sys.executable, __file__, str(layout), str(place)], check=True, stdout=subprocess.PIPE)
    shutil.rmtree(place)
    seconds, memory = json.loads(ended.stdout.splitlines()[-1])
    return seconds, memory


def _theirs(home: Path, layout: Path) -> tuple[float, float]:
    copied, tree = home / "copied", home / "tree"
    tree.mkdir()
    begun = time.perf_counter()
    memory = _peak(["skopeo", "--insecure-policy", "copy", "--quiet", f"oci:{layout}:x", f"oci:{copied}:x"])
    layer = max((copied / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    memory = max(memory, _peak(["tar", "-xzf", str(layer), "-C", str(tree)]))
    taken = time.perf_counter() - begun
    shutil.rmtree(copied)
    shutil.rmtree(tree)
    return taken, memory


_WATCH = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def _peak(command: list[str]) -> float:
    """Run a command; return what memory it had at most, in MiB. The kernel begins with what its parent had: little."""
    ended = subprocess.run([sys.executable, "-ISc", _WATCH, *command], check=True, stdout=subprocess.PIPE)
    return int(ended.stdout) / 1024


async def _child(layout: Path, place: Path) -> None:
    store = ImageStore(place)
    await store.open()
    begun = time.perf_counter()
    async with FileSource(layout, name="x", limit=1 << 34, spool=store.directory) as source:
        await Intake(store).take(source, ImagePlatform("linux", "amd64"), kind="file", reference="here", names=["x"])
    taken = time.perf_counter() - begun
    # The kernel's other number, of getrusage, begins with what the parent had.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    print(json.dumps([taken, int(peak.split()[1]) / 1024]))


if __name__ == "__main__":
    asyncio.run(_child(Path(sys.argv[1]), Path(sys.argv[2])))
