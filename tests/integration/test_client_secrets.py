"""Secrets through the client and the command line, against a real api."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from api_stand import Stand, api
from cli_kit import BARE
from sandlot import AsyncClient, AsyncSandbox, ConflictError, NotFoundError

VALUE = "correct horse battery staple"


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncGenerator[Stand]:
    async with api(tmp_path) as running:
        yield running


def key_of(stand: Stand) -> str:
    return stand.root.headers["Authorization"].removeprefix("Bearer ")


async def test_set_seen_used_and_removed(stand: Stand) -> None:
    async with AsyncClient(stand.url, key_of(stand)) as client:
        made = await client.secrets.set("TOKEN", VALUE, env=True, hosts=["API.example.com"])
        assert (made.name, made.version, made.env, made.hosts) == ("TOKEN", 1, True, ["api.example.com"])
        assert await client.secrets.get("TOKEN") == made
        assert (await client.secrets.set("TOKEN", "more", env=True)).version == 2
        assert [info.name async for info in client.secrets.list()] == ["TOKEN"]
        async with await AsyncSandbox.create(secret_env={"A": "TOKEN"}, client=client) as sandbox:
            assert stand.node.sandboxes[sandbox.id].ensure.spec.secret_env == {"A": "more"}
            with pytest.raises(ConflictError):
                await client.secrets.delete("TOKEN")
        await client.secrets.delete("TOKEN")
        with pytest.raises(NotFoundError):
            await client.secrets.get("TOKEN")


async def sandlot(stand: Stand, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    env = BARE | {"SANDLOT_URL": stand.url, "SANDLOT_API_KEY": key_of(stand)}
    command = [sys.executable, "-m", "sandlot", *arguments]
    return await asyncio.to_thread(
        subprocess.run, command, env=env, input=stdin, capture_output=True, check=False, timeout=60
    )


async def test_the_commands(stand: Stand) -> None:
    kept = await sandlot(stand, "secret", "set", "TOKEN", "--env", "--host", "*.example.com", stdin=b"value\n")
    assert (kept.returncode, kept.stdout) == (0, b"TOKEN version 1\n")
    same = await sandlot(stand, "secret", "set", "TOKEN", "--env", "--host", "*.example.com", "--json", stdin=b"value")
    assert json.loads(same.stdout)["version"] == 1
    listed = json.loads((await sandlot(stand, "secret", "ls", "--json")).stdout)
    assert [(row["name"], row["env"], row["hosts"]) for row in listed] == [("TOKEN", True, ["*.example.com"])]
    assert b"*.example.com" in (await sandlot(stand, "secret", "ls")).stdout
    made = await sandlot(stand, "create", "--secret-env", "A=TOKEN")
    assert made.returncode == 0, made.stderr
    assert stand.node.sandboxes[made.stdout.decode().strip()].ensure.spec.secret_env == {"A": "value"}
    used = await sandlot(stand, "secret", "rm", "TOKEN")
    assert used.returncode == 1
    assert b"used by 1 live" in used.stderr
    wrong = await sandlot(stand, "create", "--secret-env", "TOKEN")
    assert (wrong.returncode, b"KEY=VALUE" in wrong.stderr) == (2, True)


async def test_the_value_is_no_argument(stand: Stand) -> None:
    done = await sandlot(stand, "secret", "set", "TOKEN", "value")
    assert done.returncode == 2
    assert (await stand.root.call("GET", "/v1/secrets")).expect(200)["items"] == []
