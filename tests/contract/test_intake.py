"""Layouts and archives as sources, and what taking an image in promises: once, whole, or not at all."""

import asyncio
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from aiohttp import web

from harness import eventually
from registry_kit import (
    HASTE,
    Answer,
    FakeRegistry,
    MadeImage,
    digest_of,
    make_image,
    make_index,
    pack,
    serving,
    tar_of,
    write_layout,
    write_saved,
)
from sandboxd.contract.messages import NodeImage
from sandboxd.contract.references import parse
from sandboxd.images.base import ImageConfig
from sandboxd.images.erofs import ImageBuildError
from sandboxd.images.failures import ImageSourceError
from sandboxd.images.intake import Intake, Unwatched
from sandboxd.images.layers import LayerFile, build_from_layers
from sandboxd.images.layouts import FileSource, is_image
from sandboxd.images.manifests import Platform
from sandboxd.images.registries import Registries, RegistrySettingsError, read_auth_file
from sandboxd.images.sources import Source
from sandboxd.images.store import ImageInUseError, ImageStore
from sandboxd.images.tokens import Credential
from sandboxd.images.tree import ImportLimits

AMD64 = Platform("linux", "amd64")
SETTINGS: dict[str, Any] = {
    "Env": ["A=1"],
    "Cmd": ["/bin/x"],
    "Labels": {"l": "1"},
    "ExposedPorts": {"80/tcp": {}},
    "User": "7",
}
LISTS = {"manifest.json", "index.json", "oci-layout"}
LAYERS = [tar_of({"etc/": b"", "etc/one": b"1" * 9000}), tar_of({"etc/two": (b"2", 0o755)})]
IMAGE = make_image(LAYERS, SETTINGS)


@pytest.fixture(name="store")
async def _store(tmp_path: Path) -> ImageStore:
    store = ImageStore(tmp_path / "images")
    await store.open()
    return store


@pytest.fixture(name="registry")
async def _registry() -> AsyncGenerator[FakeRegistry]:
    async with serving(FakeRegistry()) as served:
        yield served


async def take(store: ImageStore, source: Source, *names: str, **limits: int) -> NodeImage:
    async with source:
        intake = Intake(store, ImportLimits(**limits))
        return await intake.take(source, AMD64, kind="file", reference="here", names=names)


def file(store: ImageStore, path: Path, name: str | None = None) -> FileSource:
    return FileSource(path, name=name, limit=1 << 30, spool=store.directory)


def pulled(registry: FakeRegistry, tag: str = ":latest") -> Source:
    known = Registries(insecure=frozenset({registry.host}), patience=HASTE)
    return known.source(parse(f"{registry.host}/team/app{tag}"))


async def refused(act: Any, reason: str, *words: str) -> None:
    with pytest.raises(ImageSourceError) as raised:
        await act
    assert raised.value.reason == reason, raised.value
    for word in words:
        assert word in str(raised.value)


def leftovers(store: ImageStore) -> list[str]:
    hidden = [directory for directory in store.directory.iterdir() if directory.name in {".work", ".pulling"}]
    return [path.name for directory in hidden for path in directory.iterdir()]


FORMS: dict[str, Callable[[Path], Path]] = {
    "layout": lambda root: write_layout(root / "l", (IMAGE, None)),
    "layout.tar": lambda root: pack(write_layout(root / "l", (IMAGE, "v1")), root / "layout.tar"),
    "layout.tar.gz": lambda root: pack(write_layout(root / "l", (IMAGE, "v1")), root / "layout.tar.gz", "w:gz"),
    "saved.tar": lambda root: pack(write_saved(root / "s", IMAGE, "app:v1"), root / "saved.tar"),
    "saved.tar.gz": lambda root: pack(write_saved(root / "s", IMAGE), root / "saved.tar.gz", "w:gz"),
}


async def test_every_form_gives_the_same_image(store: ImageStore, registry: FakeRegistry, tmp_path: Path) -> None:
    images: dict[str, NodeImage] = {}
    for form, make in FORMS.items():
        (tmp_path / form).mkdir()
        path = make(tmp_path / form)
        assert is_image(path), form
        images[form] = await take(store, file(store, path), form)
    for kind in (make_image(LAYERS, SETTINGS, docker=True), make_image(LAYERS, SETTINGS, compress=False)):
        registry.put(kind, "latest")
        images[kind.digest] = await take(store, pulled(registry), "pulled")
    assert len({image.digest for image in images.values()}) == 1
    (record,) = store.records()
    assert record.config == ImageConfig(env={"A": "1"}, user="7", cmd=("/bin/x",), labels={"l": "1"}, ports=("80/tcp",))
    assert record.origins[-1].platform == "linux/amd64"
    assert leftovers(store) == []


async def test_one_tree_with_two_configs_is_two_images(store: ImageStore, tmp_path: Path) -> None:
    other = make_image(LAYERS, SETTINGS | {"Env": ["A=2"]})
    one = await take(store, file(store, write_layout(tmp_path / "one", (IMAGE, None))), "one")
    two = await take(store, file(store, write_layout(tmp_path / "two", (other, None))), "two")
    assert one.id != two.id
    assert {record.config.env["A"]: record.names for record in store.records()} == {"1": ("one",), "2": ("two",)}
    for image in (one, two):
        await store.verify(image.id)


async def test_a_bare_root_file_system_is_no_image_yet(tmp_path: Path) -> None:
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/manifest.json").write_text("[]")
    assert not is_image(tmp_path / "root")
    assert not is_image(pack(tmp_path / "root", tmp_path / "root.tar"))
    assert not is_image(pack(tmp_path / "root", tmp_path / "root.tar.gz", "w:gz"))
    (tmp_path / "noise").write_bytes(b"\x1f\x8b" + os.urandom(500))
    assert not is_image(tmp_path / "noise")


async def test_one_of_several_is_named(store: ImageStore, tmp_path: Path) -> None:
    other = make_image([tar_of({"b": b"b"})])
    layout = write_layout(tmp_path / "l", (IMAGE, "one"), (other, "two"))
    await refused(take(store, file(store, layout)), "not_found", "one, two")
    await refused(take(store, file(store, layout, "three")), "not_found", "three", "one, two")
    one, two = [await take(store, file(store, layout, name), name) for name in ("one", "two")]
    assert one.id != two.id
    async with file(store, layout) as source:
        assert source.names() == ["one", "two"]


async def test_a_layout_with_an_index_chooses_the_platform(store: ImageStore, tmp_path: Path) -> None:
    arm = make_image([tar_of({"arm": b""})], platform="linux/arm64")
    layout = write_layout(tmp_path / "l", (IMAGE, None), (arm, None))
    (layout / "index.json").write_bytes(make_index((arm, "linux/arm64"), (IMAGE, "linux/amd64")))
    image = await take(store, file(store, layout), "app")
    assert store.came_from(IMAGE.digest) is not None
    assert image.names == ["app"]
    (tmp_path / "arm").mkdir()
    await refused(take(store, file(store, write_layout(tmp_path / "arm/l", (arm, None)))), "wrong_platform", "arm64")


# Layouts and archives that lie.


@pytest.mark.parametrize("form", ["layout", "layout.tar", "saved.tar"])
async def test_no_blob_is_taken_on_trust(tmp_path: Path, form: str) -> None:
    saved = form.startswith("saved")
    root = write_saved(tmp_path / "x", IMAGE) if saved else write_layout(tmp_path / "x", (IMAGE, None))
    blobs = [path for path in root.rglob("*") if path.is_file() and path.name not in LISTS]
    assert len(blobs) >= 3
    for number, path in enumerate(blobs):
        whole = path.read_bytes()
        for way, bad in enumerate((bytes([whole[0] ^ 1]) + whole[1:], whole[:-1], whole + b"\0", b"")):
            store = ImageStore(tmp_path / f"images{number}{way}")
            await store.open()
            path.write_bytes(bad)
            source = pack(root, tmp_path / "x.tar") if form.endswith("tar") else root
            with pytest.raises(ImageSourceError) as raised:
                await take(store, file(store, source))
            assert raised.value.reason in {"corrupt", "too_large"}, path
            assert store.records() == []
        path.write_bytes(whole)


@pytest.mark.parametrize(
    "row",
    [
        {"Config": "../../etc/passwd", "Layers": []},
        {"Config": "/etc/passwd", "Layers": []},
        {"Config": "config.json", "Layers": []},
        {"Config": digest_of(IMAGE.config)[7:] + ".json", "Layers": ["../../../etc/passwd", "/etc/passwd"]},
        {"Config": digest_of(IMAGE.config)[7:] + ".json", "Layers": ["layer0/layer.tar"]},
        {"Config": digest_of(IMAGE.config)[7:] + ".json", "Layers": ["layer1/layer.tar", "layer0/layer.tar"]},
        {"Config": None, "Layers": None},
        {},
    ],
)
async def test_a_saved_list_that_lies(store: ImageStore, tmp_path: Path, row: dict[str, Any]) -> None:
    root = write_saved(tmp_path / "s", IMAGE)
    (root / "config.json").write_bytes(IMAGE.config)
    (root / "manifest.json").write_text(json.dumps([row]))
    await refused(take(store, file(store, pack(root, tmp_path / "s.tar"))), "corrupt")


def tar_with(target: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(target, "w") as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return target


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


async def test_archives_are_read_by_place_and_no_link_leads_out(store: ImageStore, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(LAYERS[0])
    root = write_saved(tmp_path / "s", IMAGE)
    (root / "layer0/layer.tar").unlink()
    (root / "layer0/layer.tar").symlink_to(secret)
    await refused(take(store, file(store, pack(root, tmp_path / "s.tar"))), "corrupt", "layer0")
    # A layer that is in it twice is a link to its first place in archives of old.
    twice = make_image([LAYERS[0], LAYERS[0]])
    root = write_saved(tmp_path / "t", twice)
    (root / "layer1/layer.tar").unlink()
    (root / "layer1/layer.tar").symlink_to("../layer0/layer.tar")
    await take(store, file(store, pack(root, tmp_path / "t.tar")), "twice")


async def test_archives_that_are_none(store: ImageStore, tmp_path: Path) -> None:
    good = pack(write_saved(tmp_path / "s", IMAGE), tmp_path / "s.tar")
    for cut in (700, 5000, good.stat().st_size // 2):
        (tmp_path / "cut.tar").write_bytes(good.read_bytes()[:cut])
        with pytest.raises(ImageSourceError) as raised:
            await take(store, file(store, tmp_path / "cut.tar"))
        assert raised.value.reason in {"corrupt", "not_found"}
    (tmp_path / "cut.tar.gz").write_bytes(gzip.compress(good.read_bytes())[:-20])
    await refused(take(store, file(store, tmp_path / "cut.tar.gz")), "corrupt")
    config = member("manifest.json"), b"[]"
    await refused(take(store, file(store, tar_with(tmp_path / "a.tar", config, config))), "corrupt", "twice")
    device = member("dev", tarfile.CHRTYPE), b""
    await refused(take(store, file(store, tar_with(tmp_path / "b.tar", device))), "unsafe_content")
    await refused(take(store, file(store, tar_with(tmp_path / "c.tar", config))), "not_found")
    await refused(take(store, file(store, tmp_path / "none")), "not_found")
    bomb = FileSource(_bomb(tmp_path / "bomb.tar.gz"), limit=1 << 20, spool=tmp_path)
    await refused(take(store, bomb), "too_large")
    assert leftovers(store) == []


def _bomb(path: Path) -> Path:
    with gzip.open(path, "wb", 1) as writer:
        writer.write(bytes(1 << 22))
    return path


# Once, whole, or not at all.


async def test_one_download_however_many_ask(store: ImageStore, registry: FakeRegistry, tmp_path: Path) -> None:
    registry.put(IMAGE, "latest")
    other = ImageStore(tmp_path / "images")
    await other.open()
    images = await asyncio.gather(
        *(take(held, pulled(registry), f"n{number}") for number in range(6) for held in (store, other))
    )
    assert len({image.id for image in images}) == 1
    layers = [request for request in registry.asked("blobs") if request.path.rpartition("/")[2] in IMAGE.layer_digests]
    assert len(layers) == len(IMAGE.layer_digests)
    (held,) = store.held()
    assert set(held.names) == {f"n{number}" for number in range(6)}
    assert leftovers(store) == []


async def test_what_is_here_is_not_fetched_again(store: ImageStore, registry: FakeRegistry) -> None:
    registry.put(IMAGE, "latest", "other")
    first = await take(store, pulled(registry), "one")
    count = len(registry.asked("blobs"))
    again = await take(store, pulled(registry, ":other"), "two")
    assert (again.id, again.names) == (first.id, ["one", "two"])
    assert len(registry.asked("blobs")) == count + 1  # its config


async def test_progress_ends_at_what_there_was_to_do(store: ImageStore, registry: FakeRegistry) -> None:
    registry.put(IMAGE, "latest")
    seen: list[int] = []

    class Counting(Unwatched):
        def moved(self, count: int) -> None:
            seen.append(count)

    registry.mischief["blobs"] = _first_time_broken(IMAGE.layer_digests)
    async with pulled(registry) as source:
        await Intake(store).take(source, AMD64, kind="registry", reference="x", names=(), watch=Counting())
    assert sum(seen) == sum(len(IMAGE.blobs[digest]) for digest in IMAGE.layer_digests)


def _first_time_broken(digests: list[str]) -> Answer:
    left = set(digests)

    async def answer(request: web.Request) -> web.StreamResponse | None:
        digest = request.path.rpartition("/")[2]
        if digest not in left:
            return None
        left.remove(digest)
        response = web.StreamResponse(headers={"Content-Length": str(len(IMAGE.blobs[digest]))})
        await response.prepare(request)
        await response.write(IMAGE.blobs[digest][:20])
        assert request.transport is not None
        request.transport.abort()
        return response

    return answer


async def test_a_tag_that_moves_takes_its_name_along(store: ImageStore, registry: FakeRegistry) -> None:
    registry.put(IMAGE, "latest")
    await take(store, pulled(registry), "app:latest")
    newer = registry.put(make_image([tar_of({"new": b""})]), "latest")
    image = await take(store, pulled(registry), "app:latest")
    assert {record.names for record in store.records()} == {(), ("app:latest",)}
    found = store.came_from(newer.digest)
    assert found is not None
    assert found.id == image.id


async def test_limits_are_looked_at_before_a_byte_comes(store: ImageStore, registry: FakeRegistry) -> None:
    registry.put(IMAGE, "latest")
    await refused(take(store, pulled(registry), size_bytes=100), "too_large")
    async with pulled(registry) as source:
        full = Intake(store, reserve_bytes=1 << 60)
        await refused(full.take(source, AMD64, kind="registry", reference="x", names=()), "too_large", "room")
    assert len(registry.asked("blobs")) == 2  # both configs


async def test_a_layer_that_is_not_its_diff_id_makes_no_image(store: ImageStore, registry: FakeRegistry) -> None:
    other = make_image([LAYERS[1], LAYERS[0]], SETTINGS)
    document = json.loads(IMAGE.manifest)
    document["layers"].reverse()
    manifest = json.dumps(document).encode()
    registry.put(other)
    registry.put(IMAGE)
    registry.manifests["latest"] = manifest, IMAGE.media_type
    await refused(take(store, pulled(registry), "app"), "corrupt", digest_of(LAYERS[0]))
    assert store.records() == []


def built(tmp_path: Path, *layers: bytes, dropped: dict[str, int] | None = None) -> dict[str, bytes]:
    """The files of the image of these layers."""
    files: list[LayerFile] = []
    for number, layer in enumerate(layers):
        (tmp_path / f"{number}.tar").write_bytes(layer)
        files.append(LayerFile(tmp_path / f"{number}.tar", "application/vnd.oci.image.layer.v1.tar", digest_of(layer)))
    spool = tmp_path / "spool"
    spool.mkdir()
    made = build_from_layers(files, tmp_path / "image", spool=spool, limits=ImportLimits())
    assert made.dropped == (dropped or {})
    command = ["fsck.erofs", f"--extract={tmp_path}/out", str(tmp_path / "image")]
    subprocess.run(command, check=True, capture_output=True)
    root = tmp_path / "out"
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_layers_lie_over_each_other(tmp_path: Path) -> None:
    lower = tar_of({"a": b"1", "b": b"1", "d/": b"", "d/x": b"1", "d/y": b"1", "o/": b"", "o/p/": b"", "o/p/q": b"1"})
    upper = tar_of({"a": b"2", ".wh.b": b"", "d": b"now a file", "o/new": b"2", "o/.wh..wh..opq": b"", "e/f": b"2"})
    top = tar_of({"d/": b"", "d/z": b"3", ".wh.never": b"", "e/.wh.f": b"", "e/f": b"3"})
    assert built(tmp_path, lower, upper, top) == {"a": b"2", "d/z": b"3", "o/new": b"2", "e/f": b"3"}


def test_layers_write_through_links_as_everywhere_but_never_out(tmp_path: Path) -> None:
    lower = _tar(
        member("usr/lib/", tarfile.DIRTYPE),
        member("lib", tarfile.SYMTYPE, "usr/lib"),
        member("out", tarfile.SYMTYPE, "../../../../../.."),
        member("host", tarfile.SYMTYPE, str(tmp_path)),
        member("loop", tarfile.SYMTYPE, "loop"),
    )
    upper = tar_of({"lib/new": b"1", "out/file": b"2", "host/file": b"3"})
    files = built(tmp_path, lower, upper)
    assert files == {"usr/lib/new": b"1", "file": b"2", f"{str(tmp_path).lstrip('/')}/file": b"3"}
    assert not (tmp_path / "file").exists()
    top = tar_of({"lib/.wh.new": b"", "lib/newer": b"1"})
    (tmp_path / "two").mkdir()
    assert "usr/lib/new" not in built(tmp_path / "two", lower, upper, top)
    (tmp_path / "three").mkdir()
    with pytest.raises(ImageBuildError, match="without end"):
        built(tmp_path / "three", lower, tar_of({"loop/x": b""}))


def test_links_and_devices_of_layers(tmp_path: Path) -> None:
    lower = _tar(member("d/", tarfile.DIRTYPE), member("s", tarfile.SYMTYPE, "d"), member("null", tarfile.CHRTYPE))
    upper = tar_of({"d/one": b"1"})
    top = _tar(member("two", tarfile.LNKTYPE, "s/one"), member("pipe", tarfile.FIFOTYPE))
    assert built(tmp_path, lower, upper, top, dropped={"devices": 1, "pipes": 1}) == {"d/one": b"1", "two": b"1"}
    (tmp_path / "out2").mkdir()
    with pytest.raises(ImageBuildError):
        built(tmp_path / "out2", _tar(member("x", tarfile.LNKTYPE, "../../../etc/passwd")))


def _tar(*members: tarfile.TarInfo) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        for info in members:
            archive.addfile(info)
    return written.getvalue()


async def test_layers_come_plain_in_gzip_and_in_zstd(store: ImageStore, tmp_path: Path) -> None:
    ids: set[str] = set()
    for compress in (bytes, gzip.compress, zstandard.compress):
        blobs = [compress(layer) for layer in LAYERS]
        document = json.loads(IMAGE.manifest)
        document["layers"] = [
            {"mediaType": "application/vnd.oci.image.layer.v1.tar+zstd", "digest": digest_of(blob), "size": len(blob)}
            for blob in blobs
        ]
        image = MadeImage({digest_of(blob): blob for blob in blobs}, json.dumps(document).encode(), IMAGE.config)
        image.blobs |= {image.digest: image.manifest, digest_of(image.config): image.config}
        layout = write_layout(tmp_path / f"l{len(blobs[0])}", (image, None))
        ids.add((await take(store, file(store, layout), "app")).id)
    assert len(ids) == 1


async def test_damaged_and_endless_layers_make_no_image(store: ImageStore, tmp_path: Path) -> None:
    whole = gzip.compress(LAYERS[0])
    for number, (blob, reason) in enumerate(
        (
            (whole[:-10], "corrupt"),
            (whole[:50], "corrupt"),
            (b"\x28\xb5\x2f\xfd" + b"x" * 50, "corrupt"),
            (LAYERS[0][:700], "corrupt"),
            (os.urandom(2000), "corrupt"),
            (gzip.compress(LAYERS[0] + bytes(1 << 24)), "too_large"),
        )
    ):
        document = json.loads(IMAGE.manifest)
        document["layers"][0] |= {"digest": digest_of(blob), "size": len(blob)}
        image = MadeImage(IMAGE.blobs | {digest_of(blob): blob}, json.dumps(document).encode(), IMAGE.config)
        image.blobs[image.digest] = image.manifest
        layout = write_layout(tmp_path / f"l{number}", (image, None))
        await refused(take(store, file(store, layout), size_bytes=1 << 20, entries=100), reason)
    assert store.records() == []


def test_no_layer_leads_out_of_the_image(tmp_path: Path) -> None:
    for number, files in enumerate(({"../.wh.x": b""}, {"../x": b""}, {".wh...": b""}, {"a/.wh..": b""})):
        place = tmp_path / str(number)
        place.mkdir()
        with pytest.raises(ImageBuildError):
            built(place, tar_of(dict[str, bytes | tuple[bytes, int]](files)))


PULLER = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, "tests")
from test_intake import *

async def main():
    store = ImageStore(Path(sys.argv[1]))
    await store.open()
    served = FakeRegistry(host=sys.argv[2])
    print((await take(store, pulled(served), "app")).id, flush=True)

asyncio.run(main())
"""


async def test_a_killed_pull_leaves_what_came_and_the_next_goes_on(
    store: ImageStore, registry: FakeRegistry, tmp_path: Path
) -> None:
    image = registry.put(make_image([tar_of({"big": os.urandom(3_000_000)})], compress=False), "latest")
    (digest,) = image.layer_digests
    blob, halfway = image.blobs[digest], asyncio.Event()

    async def stalls(request: web.Request) -> web.StreamResponse | None:
        if halfway.is_set():
            return None
        response = web.StreamResponse(headers={"Content-Length": str(len(blob))})
        await response.prepare(request)
        await response.write(blob[: 2 << 20])
        halfway.set()
        await asyncio.Event().wait()
        return response

    registry.mischief[digest] = stalls
    environment = os.environ | {"PYTHONPATH": ".:tests:tests/contract"}
    command = [sys.executable, "-c", PULLER, str(store.directory), registry.host]
    puller = await asyncio.create_subprocess_exec(*command, env=environment)
    part = store.directory / ".pulling" / image.digest[7:] / f"{digest[7:]}.part"
    await asyncio.to_thread(eventually, lambda: part.exists() and part.stat().st_size >= 1 << 20, "half of the layer")
    puller.send_signal(signal.SIGKILL)
    assert await puller.wait() == -signal.SIGKILL
    fresh = ImageStore(store.directory)
    await fresh.open()
    taken = await take(fresh, pulled(registry), "app")
    await fresh.verify(taken.id)
    start = next(request for request in reversed(registry.seen) if request.path.endswith(digest)).http_range.start
    assert start is not None
    assert start >= 1 << 20
    assert leftovers(fresh) == []


async def test_a_cancelled_pull_is_taken_up_again(store: ImageStore, registry: FakeRegistry) -> None:
    registry.put(IMAGE, "latest")
    reached = asyncio.Event()

    async def stalls(request: web.Request) -> web.StreamResponse:
        reached.set()
        await asyncio.Event().wait()
        raise AssertionError

    registry.mischief[IMAGE.layer_digests[1]] = stalls
    async with asyncio.timeout(20):
        waiting = asyncio.ensure_future(take(store, pulled(registry), "app"))
        await reached.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    registry.mischief.clear()
    assert (await take(store, pulled(registry), "app")).names == ["app"]
    assert leftovers(store) == []


# Leases and names.


async def test_another_process_does_not_remove_what_is_lent(store: ImageStore, tmp_path: Path) -> None:
    image = await take(store, file(store, write_layout(tmp_path / "l", (IMAGE, None))), "app")
    other = ImageStore(store.directory)
    await other.open()
    async with store.lease(image.id):
        async with store.lease(image.id):
            pass
        with pytest.raises(ImageInUseError):
            await other.remove(image.id)
    await other.remove(image.id)
    assert store.held() == []
    assert list((store.directory / ".lent").iterdir()) == []


async def test_a_name_can_be_taken_away(store: ImageStore, tmp_path: Path) -> None:
    image = await take(store, file(store, write_layout(tmp_path / "l", (IMAGE, None))), "one", "two")
    await store.unname("one")
    await store.unname("nobody")
    (held,) = store.held()
    assert (held.id, held.names) == (image.id, ["two"])


# Credentials from a file.


def test_credentials_are_read_from_a_private_file(tmp_path: Path) -> None:
    path = tmp_path / "auth.json"
    auths = {
        "registry.example.com:5000": {"auth": "YW5uOnNlY3JldDp3aXRo"},
        "https://index.docker.io/v1/": {"username": "bob", "password": "hidden"},
        "empty.example.com": {},
    }
    path.write_text(json.dumps({"auths": auths}))
    path.chmod(0o600)
    assert read_auth_file(path) == {
        "registry.example.com:5000": Credential("ann", "secret:with"),
        "docker.io": Credential("bob", "hidden"),
    }
    for mode in (0o640, 0o604):
        path.chmod(mode)
        with pytest.raises(RegistrySettingsError, match="600"):
            read_auth_file(path)
    path.chmod(0o600)
    (tmp_path / "link").symlink_to(path)
    for bad in (tmp_path / "link", tmp_path / "none", tmp_path):
        with pytest.raises(RegistrySettingsError):
            read_auth_file(bad)
    for text in ("", "[]", "{}", '{"auths": {"x": {"auth": "hunter2"}}}', '{"auths": {"x": 1}}', '{"auths": []}'):
        path.write_text(text)
        with pytest.raises(RegistrySettingsError) as raised:
            read_auth_file(path)
        assert "hunter2" not in str(raised.value)
        assert raised.value.__cause__ is None
