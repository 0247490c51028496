"""The store of images: on the create path, new to a node out of a bucket, ten versions of one image, memory."""

import asyncio
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp

from harness import Platform
from harness import platform as start
from packs_kit import ACCESS, S3, SECRET, s3_server
from raw_sandbox import RawBox
from report import Row, median
from sandboxd.images.base import ImageConfig
from sandboxd.images.store import ImageStore
from sandboxd.packs.blobs import Blobs
from sandboxd.packs.bucket import BucketBlobs, Place
from sandboxd.packs.directory import DirectoryBlobs
from sandboxd.packs.store import PackStore

FILES = 9000
BYTES = 130_000_000
VERSIONS = 10
CHANGED = 200
LEASES = 500
ROUNDS = 7
_MIB = 1 << 20
_PIECE = 1 << 20


async def packs(platform: Platform, raw: RawBox) -> list[Row]:
    """Everything of the store, over a directory and a bucket of an S3 server on loopback."""
    del platform, raw
    with tempfile.TemporaryDirectory(dir="/var/tmp") as scratch, s3_server(Path(scratch) / "s3") as server:
        server.bucket("images")
        home = Path(scratch)
        await asyncio.to_thread(_write, home / "0.tar", 0)
        return [
            *await _create_path(home),
            *await _cold(home, server),
            *await asyncio.to_thread(_versions, home),
            *await asyncio.to_thread(_memory, home, server),
        ]


def opened(home: Path, blobs: Blobs) -> ImageStore:
    blobs.open()
    return ImageStore(home, packs=PackStore(blobs, home / ".packs/x"))


async def _create_path(home: Path) -> list[Row]:
    store = opened(home / "local", DirectoryBlobs(home / "store"))
    await store.open()
    image = await store.import_path(home / "0.tar", ["local"], ImageConfig(), domain="public")
    taken: list[float] = []
    for _ in range(LEASES):
        begun = time.perf_counter()
        async with store.lease(image.id):
            taken.append((time.perf_counter() - begun) * 1000)
    shutil.rmtree(home / "local")
    return [Row(name="an image on the create path, its file on the node", unit="ms", value=median(taken), limit=2)]


async def _cold(home: Path, server: S3) -> list[Row]:
    """From the request until the sandbox runs, its image in the bucket only; and the same with the file there."""
    auth = home / "auth.json"
    auth.touch(mode=0o600)
    auth.write_text(json.dumps({"access_key_id": ACCESS, "secret_access_key": SECRET}))
    settings = {
        "image_store": "s3://images/cold",
        "image_store_endpoint": server.endpoint,
        "image_store_auth_file": str(auth),
        "pool_size": "0",
    }
    with start(**settings) as node:
        command = [sys.executable, "-m", "infra.sandlotd", "image", "import", str(home / "0.tar"), "cold"]
        await asyncio.to_thread(
            lambda: subprocess.run(command, env=dict(node.env), check=True, stdout=subprocess.DEVNULL)
        )
        (file,) = [path for path in node.config.images_dir.glob("*.erofs") if path.stat().st_size < 2 * BYTES]
        cold: list[float] = []
        warm: list[float] = []
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {node.key}"}) as session:
            await _until_known(node, session)
            for _ in range(ROUNDS):
                file.unlink()
                cold.append(await _created(node, session))
                warm.append(await _created(node, session))
        name = f"an image of {BYTES // 10**6} MB"
        return [
            Row(name=f"{name}, in a bucket only: until its sandbox runs", unit="ms", value=median(cold), limit=300),
            Row(name=f"{name}, its file on the node: until its sandbox runs", unit="ms", value=median(warm)),
        ]


async def _until_known(node: Platform, session: aiohttp.ClientSession) -> None:
    """The api hears of the image with the next report."""
    while True:
        async with session.post(f"{node.url}/v1/sandboxes", json={"image": "cold"}) as answer:
            if answer.ok:
                sandbox = (await answer.json())["id"]
                break
        await asyncio.sleep(0.2)
    await _delete(node, session, sandbox)


async def _created(node: Platform, session: aiohttp.ClientSession) -> float:
    begun = time.perf_counter()
    async with session.post(f"{node.url}/v1/sandboxes", json={"image": "cold", "resources": {"memory_mib": 256}}) as it:
        answer = await it.json()
        if not it.ok:
            raise RuntimeError(str(answer))
    taken = (time.perf_counter() - begun) * 1000
    await _delete(node, session, answer["id"])
    return taken


async def _delete(node: Platform, session: aiohttp.ClientSession, sandbox: str) -> None:
    async with session.delete(f"{node.url}/v1/sandboxes/{sandbox}?grace_seconds=0") as answer:
        await answer.read()


def _versions(home: Path) -> list[Row]:
    together = 0
    alone: list[int] = []
    files: list[int] = []
    for number in range(VERSIONS):
        source = home / f"{number}.tar"
        if number:
            _write(source, number)
        for place in ("together", f"alone-{number}"):
            _run("import", source, home / "work", f"dir:{home / place}")
            (image,) = (home / "work").glob("*.erofs")
            files.append(image.stat().st_size)
            shutil.rmtree(home / "work")
        alone.append(_size(home / f"alone-{number}"))
        shutil.rmtree(home / f"alone-{number}")
        if number:
            source.unlink()
    together = _size(home / "together")
    name = f"{VERSIONS} versions of an image of {BYTES // 10**6} MB, {CHANGED} of {FILES} files new in each: stored"
    return [
        Row(
            name=name,
            unit="MiB",
            value=together / _MIB,
            baseline=sum(alone) / _MIB,
            baseline_name="each stored alone",
            note=f"their files have {sum(files) // 2 // _MIB} MiB",
        )
    ]


def _memory(home: Path, server: S3) -> list[Row]:
    place = f"s3:{server.endpoint}"
    stored = _run("import", home / "0.tar", home / "m1", place)
    filled = _run("fill", home / "m1", home / "m2", place)
    seconds = f"an image of {BYTES // 10**6} MB"
    return [
        Row(name=f"{seconds}: from a tar into a bucket", unit="s", value=stored["seconds"]),
        Row(name=f"{seconds}: from a tar into a bucket, peak memory", unit="MiB", value=stored["peak"]),
        Row(name=f"{seconds}: out of a bucket", unit="ms", value=filled["seconds"] * 1000),
        Row(name=f"{seconds}: out of a bucket, peak memory", unit="MiB", value=filled["peak"]),
    ]


def _run(what: str, source: Path, home: Path, place: str) -> dict[str, float]:
    command = [sys.executable, __file__, what, str(source), str(home), place]
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return json.loads(ended.stdout.splitlines()[-1])


def _size(place: Path) -> int:
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())


def _files(version: int) -> Iterator[tuple[str, bytes]]:
    """Sizes as root file systems have them; half of each file is noise, half text. Some files differ by version."""
    left = BYTES
    for number in range(FILES):
        of = version if (number * 7919) % FILES < CHANGED * (version > 0) else 0
        mixed = int.from_bytes(hashlib.sha256(b"%d" % number).digest()[:4], "big") / 2**32
        size = min(int(600 / (1.003 - mixed) ** 0.9), left) if number < FILES - 30 else left // (FILES - number)
        left -= size
        noise = hashlib.shake_128(b"%d %d" % (number, of)).digest(size // 2)
        yield f"usr/lib/{number // 40}/{number}", noise + (b"text of %d\n" % number) * ((size - len(noise)) // 11)


def _write(path: Path, version: int) -> None:
    with path.open("wb", buffering=_PIECE) as out:
        for name, data in _files(version):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1_700_000_000
            out.write(info.tobuf(tarfile.USTAR_FORMAT))
            out.write(data)
            out.write(bytes(-len(data) % 512))
        out.write(bytes(io.DEFAULT_BUFFER_SIZE))


async def _child(what: str, source: Path, home: Path, place: str) -> None:
    kind, _, where = place.partition(":")
    blobs: Blobs = DirectoryBlobs(Path(where))
    if kind == "s3":
        blobs = BucketBlobs(
            Place(bucket="images", prefix="memory", endpoint=where, access_key=ACCESS, secret_key=SECRET)
        )
    store = opened(home, blobs)
    await store.open()
    begun = time.perf_counter()
    if what == "import":
        await store.import_path(source, ["x"], ImageConfig(), domain="public")
        taken = time.perf_counter() - begun
    else:
        (record,) = (path.stem for path in source.glob("*.json"))
        image = await store.fetch(f"sha256:{record}", ["x"])
        begun = time.perf_counter()
        async with store.lease(image.id):
            taken = time.perf_counter() - begun
    # The kernel's other number, of getrusage, begins with what the parent had.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    print(json.dumps({"seconds": taken, "peak": int(peak.split()[1]) / 1024}))


if __name__ == "__main__":
    asyncio.run(_child(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]))
