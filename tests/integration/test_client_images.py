"""The client and the command on images, against a real api over a node that makes them up."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from api_stand import until
from image_stand import HOST, ImageStand, image_stand
from sandlot import AsyncClient, AsyncSandbox, Client, Image, ImageFailedError, ImageInfo, NotFoundError, Sandbox


@pytest.fixture(name="images")
async def _images(tmp_path: Path) -> AsyncGenerator[ImageStand]:
    async with image_stand(tmp_path) as opened:
        yield opened


def key_of(images: ImageStand) -> str:
    return images.root.headers["Authorization"].removeprefix("Bearer ")


@pytest.fixture(name="client")
async def _client(images: ImageStand) -> AsyncGenerator[AsyncClient]:
    async with AsyncClient(images.stand.url, key_of(images)) as client:
        yield client


async def test_pulled_named_found_and_removed(client: AsyncClient) -> None:
    seen: list[ImageInfo] = []
    info = await client.images.pull(f"{HOST}/app:1", tags=["app"], progress=seen.append)
    assert (info.state, info.tags) == ("ready", ("app:latest",))
    assert seen[-1] == info
    assert (await client.images.tag(info.id, "app:2")).image_id == info.id
    assert {(tag.name, tag.tag) async for tag in client.images.tags()} == {("app", "latest"), ("app", "2")}
    for name in (info.id, "app", "app:2"):
        assert (await client.images.find(name)).id == info.id
    assert (await client.images.find("base")).tags == ("base",)
    assert [each.id async for each in client.images.list(tag="app")] == [info.id]
    assert [line["kind"] async for line in client.images.log(info.id, follow=True)] == ["progress", "exit"]
    await client.images.untag("app:2")
    await client.images.delete(info.id)
    for name in (info.id, "app", "app:2"):
        with pytest.raises(NotFoundError):
            await client.images.find(name)


async def test_a_sandbox_from_an_image_made_for_it(client: AsyncClient) -> None:
    image = Image.from_registry(f"{HOST}/app:1").with_config(env={"A": "1"})
    async with await AsyncSandbox.create(image, client=client) as sandbox:
        assert sandbox.info.state == "running"
        made = await client.images.get(str((sandbox.info.raw.get("image") or {}).get("id")))
        assert made.reference == f"{HOST}/app:1"
    async with await AsyncSandbox.create(f"{HOST}/app:2", client=client) as sandbox:
        assert sandbox.info.image == f"{HOST}/app:2"


async def test_a_failure_has_its_reason(client: AsyncClient) -> None:
    with pytest.raises(ImageFailedError) as raised:
        await AsyncSandbox.create(Image.from_registry(f"{HOST}/too_large:1"), client=client)
    assert raised.value.info.reason == "too_large"
    assert "sandlot image log" in str(raised.value)


async def test_a_file_is_uploaded_from_where_it_broke(client: AsyncClient, images: ImageStand, tmp_path: Path) -> None:
    path = tmp_path / "app.tar"
    path.write_bytes(os.urandom(9_000_000))
    image = Image.from_archive(path, format="oci")
    seen: list[tuple[int, int | None]] = []
    info = await client.images.make(image, tags=["packed"], uploaded=lambda done, total: seen.append((done, total)))
    assert info.state == "ready"
    assert seen == [(0, 9_000_000), (8 * 1024 * 1024, 9_000_000), (9_000_000, 9_000_000)]
    seen.clear()
    assert (await client.images.make(image, uploaded=lambda done, total: seen.append((done, total)))).id == info.id
    assert seen == [(9_000_000, 9_000_000)]


async def test_the_blocking_form(images: ImageStand) -> None:
    def work() -> str:
        with Client(images.stand.url, key_of(images)) as client:
            image = Image.from_registry(f"{HOST}/app:1")
            with Sandbox.create(image, client=client) as sandbox:
                return sandbox.info.state

    assert await asyncio.to_thread(work) == "running"


async def sandlot(images: ImageStand, *words: str) -> tuple[int, str, str]:
    env = {"PATH": os.environ["PATH"], "SANDLOT_URL": images.stand.url, "SANDLOT_API_KEY": key_of(images)}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "sandlot",
        *words,
        env=env | {"COLUMNS": "200", "XDG_CONFIG_HOME": "/nonexistent"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def test_the_command(images: ImageStand, tmp_path: Path) -> None:
    code, image_id, _ = await sandlot(images, "image", "pull", f"{HOST}/app:1", "--tag", "app")
    assert code == 0
    image_id = image_id.strip()
    _, listed, _ = await sandlot(images, "image", "ls", "--json")
    assert json.loads(listed)[0]["id"] == image_id
    _, table, _ = await sandlot(images, "image", "ls")
    assert "app:latest" in table
    assert "base" in table
    _, shown, _ = await sandlot(images, "image", "inspect", "app")
    assert json.loads(shown)["id"] == image_id
    assert (await sandlot(images, "image", "tag", "app", "app:2"))[0] == 0
    assert (await sandlot(images, "image", "tag", "app", "app:2", "--remove"))[0] == 0
    _, log, _ = await sandlot(images, "image", "log", "app", "--follow")
    assert log.splitlines()[-1] == "ready"
    (tmp_path / "app.tar").write_bytes(b"anything")
    code, packed, _ = await sandlot(images, "image", "import", str(tmp_path / "app.tar"))
    assert (code, packed.startswith("img")) == (0, True)
    assert (await sandlot(images, "image", "tag", "app", "app:2"))[0] == 0
    assert (await sandlot(images, "image", "rm", "app:2"))[1].strip() == "app:2"
    assert (await sandlot(images, "image", "rm", "app"))[1].strip() == image_id
    code, _, said = await sandlot(images, "image", "inspect", "app")
    assert (code, "image_not_found" in said) == (1, True)
    code, _, said = await sandlot(images, "image", "pull", f"{HOST}/corrupt:1")
    assert (code, "corrupt" in said) == (1, True)


async def test_removing_ends_what_is_being_made(client: AsyncClient, images: ImageStand) -> None:
    info = await client.images.make(Image.from_registry(f"{HOST}/slow:1"), wait=False)
    await until(lambda: info.id in images.runner.running)
    await client.images.delete(info.id)
    await until(lambda: not images.runner.running)
