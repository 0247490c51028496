"""What pulling promises, against a registry that does everything wrong that one can do wrong."""

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from aiohttp import web

from registry_kit import (
    HASTE,
    OCI_INDEX,
    OCI_MANIFEST,
    Answer,
    FakeRegistry,
    MadeImage,
    basic,
    digest_of,
    make_image,
    make_index,
    serving,
    tar_of,
)
from sandboxd.contract.references import parse
from sandboxd.images.addresses import Trust
from sandboxd.images.failures import ImageSourceError
from sandboxd.images.manifests import Descriptor, Platform
from sandboxd.images.registries import Registries
from sandboxd.images.registry import Registry
from sandboxd.images.sources import Found
from sandboxd.images.tokens import Credential

AMD64 = Platform("linux", "amd64")
SECRET = Credential("ann", "hunter2-and-more")


@pytest.fixture(name="registry")
async def _registry() -> AsyncGenerator[FakeRegistry]:
    async with serving(FakeRegistry()) as served:
        yield served


@pytest.fixture(name="image")
def _image(registry: FakeRegistry) -> MadeImage:
    noise = bytes(range(256)) * 20
    layers = [tar_of({"etc/": b"", "etc/one": noise}), tar_of({"etc/two": b"2" * 5000})]
    return registry.put(make_image(layers, {"Env": ["A=1"], "Cmd": ["/x"]}, compress=False), "latest", "1.0")


def registries(registry: FakeRegistry, **changes: object) -> Registries:
    return Registries(**({"insecure": frozenset({registry.host}), "patience": HASTE} | changes))  # pyright: ignore[reportArgumentType]


async def found(
    registry: FakeRegistry, tag: str = ":latest", platform: Platform = AMD64, credential: Credential | None = None
) -> Found:
    source = registries(registry).source(parse(f"{registry.host}/team/app{tag}"), credential)
    async with source:
        return await source.find(platform)


async def fetched(registry: FakeRegistry, image: MadeImage, directory: Path, number: int = 0) -> bytes:
    row = json.loads(image.manifest)["layers"][number]
    layer = Descriptor(row["digest"], row["size"], row["mediaType"])
    directory.mkdir(exist_ok=True)
    source = registries(registry).source(parse(f"{registry.host}/team/app"))
    async with source:
        return (await source.fetch(layer, directory, lambda _: None)).read_bytes()


async def refused(act: object, reason: str, *words: str) -> ImageSourceError:
    with pytest.raises(ImageSourceError) as raised:
        await act  # pyright: ignore[reportGeneralTypeIssues]
    assert raised.value.reason == reason, raised.value
    for word in words:
        assert word in str(raised.value)
    return raised.value


def answers(status: int, body: bytes = b"", times: int = 10**9, **headers: str) -> Answer:
    left = iter(range(times))

    async def answer(request: web.Request) -> web.StreamResponse | None:
        if next(left, None) is None:
            return None
        return web.Response(
            status=status, body=body, headers={name.replace("_", "-"): headers[name] for name in headers}
        )

    return answer


async def cut_off(request: web.Request, body: bytes, length: int | None = None) -> web.StreamResponse:
    """Send so much, and break the connection; `length` is what the headers promise."""
    response = web.StreamResponse(headers={"Content-Length": str(length)} if length is not None else {})
    await response.prepare(request)
    await response.write(body)
    assert request.transport is not None
    await asyncio.sleep(0.02)
    request.transport.abort()
    return response


async def test_an_image_is_found_by_tag_and_by_digest(registry: FakeRegistry, image: MadeImage) -> None:
    for tag in ("", ":1.0", f"@{image.digest}", f":gone@{image.digest}"):
        seen = await found(registry, tag)
        assert seen.digest == image.digest
        assert seen.described.config.env == {"A": "1"}
        assert seen.described.config.cmd == ("/x",)


async def test_layers_come_whole_and_once(registry: FakeRegistry, image: MadeImage, tmp_path: Path) -> None:
    for number in (0, 1):
        assert await fetched(registry, image, tmp_path / "d", number) == image.layers[number]
    before = len(registry.asked("blobs"))
    assert await fetched(registry, image, tmp_path / "d", 0) == image.layers[0]
    assert len(registry.asked("blobs")) == before
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == sorted(
        digest.removeprefix("sha256:") for digest in image.layer_digests
    )


async def test_nothing_is_encoded_and_nobody_is_remembered(registry: FakeRegistry, image: MadeImage) -> None:
    registry.mischief["manifests"] = answers(200, image.manifest, Set_Cookie="track=me; Path=/")
    await found(registry)
    assert {request.headers["Accept-Encoding"] for request in registry.seen} == {"identity"}
    assert all("Cookie" not in request.headers for request in registry.seen)


async def test_docker_documents_are_read_too(registry: FakeRegistry) -> None:
    image = registry.put(make_image([tar_of({"a": b"a"})], docker=True), "docker")
    assert (await found(registry, ":docker")).digest == image.digest


async def test_the_platform_is_chosen(registry: FakeRegistry) -> None:
    ours, arm = make_image([tar_of({"a": b"a"})]), make_image([tar_of({"b": b"b"})], platform="linux/arm64/v8")
    registry.put(ours)
    registry.put(arm)
    registry.manifests["both"] = make_index((arm, "linux/arm64/v8"), (ours, "linux/amd64")), OCI_INDEX
    assert (await found(registry, ":both")).digest == ours.digest
    assert (await found(registry, ":both", Platform("linux", "arm64"))).digest == arm.digest
    await refused(found(registry, ":both", Platform("linux", "riscv64")), "wrong_platform", "linux/arm64/v8")
    await refused(found(registry, f"@{arm.digest}"), "wrong_platform", "linux/arm64")


async def test_an_index_that_lies_about_a_platform_is_found_out(registry: FakeRegistry) -> None:
    arm = registry.put(make_image([tar_of({"b": b"b"})], platform="linux/arm64"))
    registry.manifests["lie"] = make_index((arm, "linux/amd64")), OCI_INDEX
    await refused(found(registry, ":lie"), "wrong_platform")


# What is not there, or is not for us.


async def test_what_is_not_there(registry: FakeRegistry, image: MadeImage) -> None:
    await refused(found(registry, ":none"), "not_found")
    await refused(found(registry, f"@sha256:{'0' * 64}"), "not_found")


async def test_a_password_is_asked_for_and_taken(registry: FakeRegistry, image: MadeImage) -> None:
    registry.user = SECRET.username, SECRET.password
    await refused(found(registry), "unauthorized")
    error = await refused(found(registry, credential=Credential("ann", "wrong-secret")), "unauthorized")
    assert "wrong-secret" not in repr(error)
    assert (await found(registry, credential=SECRET)).digest == image.digest
    assert SECRET.password not in repr(SECRET)


async def test_a_token_is_asked_for_this_repository_alone(registry: FakeRegistry, image: MadeImage) -> None:
    registry.user, registry.bearer = (SECRET.username, SECRET.password), True
    await refused(found(registry), "unauthorized")
    assert (await found(registry, credential=SECRET)).digest == image.digest
    (token, *_) = [request for request in reversed(registry.seen) if request.path == "/token"]
    assert dict(token.query) == {"scope": "repository:team/app:pull", "service": "a, b"}
    # The registry itself gets the token, never the password.
    assert {request.headers.get("Authorization") for request in registry.asked("manifests")[-2:]} == {
        None,
        "Bearer for-repository:team/app:pull",
    }


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (answers(200, b"{}"), "registry_unavailable"),
        (answers(200, b"<html>"), "registry_unavailable"),
        (answers(200, b"[" * 50_000), "registry_unavailable"),
        (answers(200, b'{"token": "a\\r\\nX: y"}'), "registry_unavailable"),
        (answers(200, b'{"token": 7}'), "registry_unavailable"),
        (answers(200, b'{"token": "not the one"}'), "registry_unavailable"),
        (answers(200, b'{"token": "notit"}'), "unauthorized"),
        (answers(200, b" " * 100_000), "too_large"),
        (answers(403), "unauthorized"),
        (answers(500), "registry_unavailable"),
        (answers(302, Location="http://127.0.0.1:1/"), "registry_unavailable"),
        (answers(404), "registry_unavailable"),
    ],
)
async def test_a_token_server_that_lies(registry: FakeRegistry, image: MadeImage, answer: Answer, reason: str) -> None:
    registry.bearer = True
    registry.mischief["token"] = answer
    await refused(found(registry, credential=SECRET), reason)


@pytest.mark.parametrize(
    "realm",
    ["ftp://x/", "http://token.example.com/", "file:///etc/passwd", "nothing", "http://[", "https://ann@example.com/"],
)
async def test_a_password_goes_nowhere_in_the_clear(registry: FakeRegistry, image: MadeImage, realm: str) -> None:
    registry.mischief["manifests"] = answers(401, WWW_Authenticate=f'Bearer realm="{realm}"')
    with pytest.raises(ImageSourceError) as raised:
        await found(registry, credential=SECRET)
    assert raised.value.reason in {"unsafe_content", "registry_unavailable"}


# Manifests and configs that are not what they say.


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "corrupt"),
        (b"\xff\xfe", "corrupt"),
        (b"[]", "corrupt"),
        (b"[" * 100_000, "corrupt"),
        (b"{}", "corrupt"),
        (b'{"schemaVersion": 1, "fsLayers": [], "config": {}}', "corrupt"),
        (b'{"schemaVersion": 2, "manifests": [], "layers": []}', "corrupt"),
        (b'{"schemaVersion": 2, "config": {"digest": "sha256:../../etc"}, "layers": []}', "corrupt"),
        (b'{"schemaVersion": 2, "manifests": []}', "wrong_platform"),
        (b" " * (4 * 1024 * 1024 + 1), "too_large"),
    ],
)
async def test_a_manifest_that_is_none(registry: FakeRegistry, body: bytes, reason: str) -> None:
    registry.manifests["bad"] = body, "application/json"
    await refused(found(registry, ":bad"), reason)


async def test_a_manifest_is_what_its_digest_says(registry: FakeRegistry, image: MadeImage) -> None:
    registry.mischief["manifests"] = answers(200, image.manifest + b" ")
    await refused(found(registry, f"@{image.digest}"), "corrupt")
    said = answers(200, image.manifest, Docker_Content_Digest=digest_of(b""), Content_Type=OCI_MANIFEST)
    registry.mischief["manifests"] = said
    await refused(found(registry), "corrupt")
    registry.mischief["manifests"] = answers(200, image.manifest, Content_Type=OCI_INDEX)
    await refused(found(registry), "corrupt")


async def test_a_config_is_what_its_digest_says(registry: FakeRegistry, image: MadeImage) -> None:
    config = digest_of(image.config)
    registry.blobs[config] = image.config.replace(b"A=1", b"A=2")
    await refused(found(registry), "corrupt")
    registry.blobs[config] = image.config + b" "
    await refused(found(registry), "too_large")
    registry.blobs[config] = image.config[:-1]
    await refused(found(registry), "registry_unavailable", "tried")


async def test_layers_from_elsewhere_are_refused(registry: FakeRegistry) -> None:
    image = make_image([tar_of({"a": b""})])
    for change in (
        {"urls": ["https://elsewhere.example.com/layer"]},
        {"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"},
        {"mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"},
        {"mediaType": "application/wasm"},
    ):
        document = json.loads(image.manifest)
        document["layers"][0] |= change
        registry.manifests["bad"] = json.dumps(document).encode(), OCI_MANIFEST
        await refused(found(registry, ":bad"), "unsafe_content", image.layer_digests[0])


async def test_indexes_in_indexes_end(registry: FakeRegistry) -> None:
    inner = make_index()
    for _ in range(5):
        registry.manifests[digest_of(inner)] = inner, OCI_INDEX
        row = {"mediaType": OCI_INDEX, "digest": digest_of(inner), "size": len(inner)}
        inner = json.dumps({"schemaVersion": 2, "manifests": [row]}).encode()
    registry.manifests["deep"] = inner, OCI_INDEX
    await refused(found(registry, ":deep"), "corrupt", "without end")


# Layers that break, lie and never end.


async def test_a_layer_that_breaks_off_is_taken_up_where_it_broke(
    registry: FakeRegistry, image: MadeImage, tmp_path: Path
) -> None:
    blob = image.layers[0]
    starts: list[int] = []

    async def breaks(request: web.Request) -> web.StreamResponse | None:
        start = request.http_range.start or 0
        starts.append(start)
        if len(starts) > 2:
            return None
        if start == 0:
            return await cut_off(request, blob[:4000], len(blob))
        response = web.StreamResponse(
            status=206,
            headers={
                "Content-Range": f"bytes {start}-{len(blob) - 1}/{len(blob)}",
                "Content-Length": str(len(blob) - start),
            },
        )
        await response.prepare(request)
        await response.write(blob[start : start + 3000])
        await asyncio.sleep(0.02)
        assert request.transport is not None
        request.transport.abort()
        return response

    registry.mischief["blobs"] = breaks
    assert await fetched(registry, image, tmp_path) == blob
    assert starts == [0, 4000, 7000]


async def test_a_new_process_goes_on_where_a_killed_one_was(
    registry: FakeRegistry, image: MadeImage, tmp_path: Path
) -> None:
    blob, digest = image.layers[0], image.layer_digests[0]
    part = tmp_path / f"{digest.removeprefix('sha256:')}.part"
    part.write_bytes(blob[:5000])
    assert await fetched(registry, image, tmp_path) == blob
    assert [request.headers["Range"] for request in registry.asked("blobs")] == ["bytes=5000-"]


@pytest.mark.parametrize("left", [b"x" * 5000, b"x" * 10**6, b""], ids=["wrong", "too much", "nothing"])
async def test_remains_that_are_wrong_do_no_harm(
    registry: FakeRegistry, image: MadeImage, tmp_path: Path, left: bytes
) -> None:
    (tmp_path / f"{image.layer_digests[0].removeprefix('sha256:')}.part").write_bytes(left)
    assert await fetched(registry, image, tmp_path) == image.layers[0]


async def test_a_registry_without_ranges_starts_again(registry: FakeRegistry, image: MadeImage, tmp_path: Path) -> None:
    blob = image.layers[0]
    (tmp_path / f"{image.layer_digests[0].removeprefix('sha256:')}.part").write_bytes(blob[:5000])
    registry.mischief["blobs"] = answers(200, blob)
    assert await fetched(registry, image, tmp_path) == blob


async def test_a_layer_is_what_its_digest_says(registry: FakeRegistry, image: MadeImage, tmp_path: Path) -> None:
    registry.mischief["blobs"] = answers(200, b"x" * len(image.layers[0]))
    await refused(fetched(registry, image, tmp_path), "corrupt", image.layer_digests[0])
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [0]


@pytest.mark.parametrize("length", [1, 100_000])
async def test_a_layer_has_the_size_it_is_said_to_have(
    registry: FakeRegistry, image: MadeImage, tmp_path: Path, length: int
) -> None:
    registry.mischief["blobs"] = answers(200, b"x" * length)
    await refused(fetched(registry, image, tmp_path), "corrupt", str(length))


async def test_a_body_without_end_is_left_at_the_first_byte_too_many(
    registry: FakeRegistry, image: MadeImage, tmp_path: Path
) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 65536)

    for kind in ("manifests", "blobs"):
        registry.mischief = {kind: endless}
        await refused(found(registry), "too_large")
    await refused(fetched(registry, image, tmp_path), "corrupt", "more than")
    assert all(path.stat().st_size <= len(image.layers[0]) for path in tmp_path.iterdir())


async def test_a_part_nobody_asked_for(registry: FakeRegistry, image: MadeImage, tmp_path: Path) -> None:
    registry.mischief["blobs"] = answers(206, image.layers[0], Content_Range="bytes 0-1/2")
    await refused(fetched(registry, image, tmp_path), "corrupt")
    (tmp_path / f"{image.layer_digests[0].removeprefix('sha256:')}.part").write_bytes(image.layers[0][:100])
    registry.mischief["blobs"] = answers(206, image.layers[0][100:], Content_Range="bytes 99-1/2")
    await refused(fetched(registry, image, tmp_path), "corrupt")


async def test_what_is_encoded_is_refused(registry: FakeRegistry, image: MadeImage, tmp_path: Path) -> None:
    registry.mischief["blobs"] = answers(200, image.layers[0], Content_Encoding="gzip")
    await refused(fetched(registry, image, tmp_path), "corrupt", "encodes")


async def test_silence_and_trickles_end(registry: FakeRegistry, image: MadeImage, tmp_path: Path) -> None:
    async def silence(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async def trickle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x")
            await asyncio.sleep(0.02)

    registry.mischief["manifests"] = silence
    await refused(found(registry), "registry_unavailable", "does not answer")
    registry.mischief["manifests"] = trickle
    await refused(found(registry), "registry_unavailable", "too long")
    registry.mischief["blobs"] = silence
    await refused(fetched(registry, image, tmp_path), "registry_unavailable", "does not answer")
    registry.mischief["blobs"] = trickle
    await refused(fetched(registry, image, tmp_path / "two"), "registry_unavailable", "too slow")


async def test_what_passes_is_tried_again(registry: FakeRegistry, image: MadeImage, tmp_path: Path) -> None:
    for answer in (answers(500, times=2), answers(503, times=2), answers(429, times=2, Retry_After="0")):
        registry.mischief["manifests"] = answer
        assert (await found(registry)).digest == image.digest
    registry.mischief["blobs"] = answers(502, times=2)
    assert await fetched(registry, image, tmp_path) == image.layers[0]


async def test_what_does_not_pass_ends(registry: FakeRegistry, image: MadeImage, tmp_path: Path) -> None:
    registry.mischief["manifests"] = answers(500)
    await refused(found(registry), "registry_unavailable", "500", "tried 3 times")
    assert len(registry.seen) == 3
    registry.mischief["manifests"] = answers(429, Retry_After="7200")
    await refused(found(registry), "registry_unavailable", "429", "7200")
    registry.mischief["manifests"] = answers(403)
    await refused(found(registry), "unauthorized")
    registry.mischief["blobs"] = answers(400)
    await refused(fetched(registry, image, tmp_path), "registry_unavailable", "400")
    gone = FakeRegistry(host="127.0.0.1:1")
    await refused(found(gone), "registry_unavailable", "cannot be reached")


async def test_headers_without_end_are_not_read(registry: FakeRegistry, image: MadeImage) -> None:
    registry.mischief["manifests"] = answers(200, image.manifest, X_Long="x" * 100_000)
    await refused(found(registry), "registry_unavailable")


# Where it sends us.


async def test_a_redirect_gets_no_credential(registry: FakeRegistry, image: MadeImage, tmp_path: Path) -> None:
    registry.user = SECRET.username, SECRET.password
    async with serving(FakeRegistry()) as storage:
        storage.blobs = registry.blobs

        async def sends_on(request: web.Request) -> web.StreamResponse:
            raise web.HTTPTemporaryRedirect(f"http://{storage.host}{request.path}")

        registry.mischief["blobs"] = sends_on
        source = registries(registry, credentials={registry.host: SECRET}).source(parse(f"{registry.host}/team/app"))
        async with source:
            seen = await source.find(AMD64)
            layer = seen.manifest.layers[0]
            assert (await source.fetch(layer, tmp_path, lambda _: None)).read_bytes() == image.layers[0]
        assert storage.asked("blobs")
        assert all("Authorization" not in request.headers for request in storage.seen)
        assert registry.asked("blobs")[-1].headers["Authorization"] == basic(SECRET.username, SECRET.password)


@pytest.mark.parametrize(
    "place",
    [
        "http://127.0.0.2:{port}/x",
        "http://localhost:{port}/x",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]:{port}/x",
        "http://[::ffff:127.0.0.2]:{port}/x",
        "http://2130706434:{port}/x",
        "http://0x7f000002:{port}/x",
        "http://0.0.0.0:{port}/x",
        "http://[fe80::1]/x",
        "ftp://127.0.0.1/x",
        "file:///etc/passwd",
        "http://user:pass@127.0.0.1:{port}/x",
        "http://[",
    ],
)
async def test_a_redirect_does_not_lead_into_this_network(registry: FakeRegistry, image: MadeImage, place: str) -> None:
    """Even of a registry that is private itself: another host of this machine, and metadata services, stay closed."""
    port = registry.host.partition(":")[2]
    registry.mischief["blobs"] = answers(307, Location=place.format(port=port))
    await refused(found(registry), "unsafe_content")
    assert all(request.path.startswith("/v2/") for request in registry.seen)


async def test_a_private_address_needs_to_be_named(registry: FakeRegistry, image: MadeImage) -> None:
    for host in (registry.host, f"localhost:{registry.host.partition(':')[2]}"):
        async with Registry(host, "team/app", trust=Trust(insecure=True), patience=HASTE) as public:
            await refused(public.manifest("latest"), "registry_unavailable", "private address")
    assert registry.seen == []


async def test_plain_http_needs_to_be_named(registry: FakeRegistry, image: MadeImage) -> None:
    async with Registry(registry.host, "team/app", trust=Trust(private=True), patience=HASTE) as careful:
        await refused(careful.manifest("latest"), "registry_unavailable")
    assert registry.seen == []


async def test_redirects_end(registry: FakeRegistry, image: MadeImage) -> None:
    registry.mischief["manifests"] = answers(302, Location="/v2/team/app/manifests/latest")
    await refused(found(registry), "registry_unavailable", "without end")
    assert len(registry.seen) < 10
    registry.mischief["manifests"] = answers(302)
    await refused(found(registry), "registry_unavailable", "nowhere")


# Mirrors.


async def test_a_mirror_is_asked_first_and_may_fail(registry: FakeRegistry, image: MadeImage, tmp_path: Path) -> None:
    async with serving(FakeRegistry()) as mirror:
        both = registries(
            registry,
            insecure=frozenset({registry.host, mirror.host}),
            mirrors={registry.host: (mirror.host,)},
            credentials={registry.host: SECRET},
        )
        registry.user = SECRET.username, SECRET.password
        source = both.source(parse(f"{registry.host}/team/app"))
        async with source:
            assert (await source.find(AMD64)).digest == image.digest
            mirror.put(image, "latest")
            count = len(registry.seen)
            seen = await source.find(AMD64)
            assert len(registry.seen) == count
            mirror.mischief["blobs"] = answers(200, b"x" * seen.manifest.layers[0].size)
            assert (await source.fetch(seen.manifest.layers[0], tmp_path, lambda _: None)).read_bytes() == image.layers[
                0
            ]
        assert all("Authorization" not in request.headers for request in mirror.seen)
