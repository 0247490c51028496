"""A node and what it puts into requests: told to the network and the guest, kept in memory, missed after a restart."""

import asyncio
import base64
import logging
from pathlib import Path
from typing import Any

import pytest

from injection_kit import SECRET, authority
from node_kit import FakeNode, World, a_sandbox_id, a_stop, an_ensure, crashing_node, node
from sandboxd.contract.messages import CredentialsSpec, EgressSpec, PutEgress
from sandboxd.contract.problems import ProblemError
from sandboxd.guest_client.fake import FakeGuest
from sandboxd.hooks.trust import AUTHORITY_FILE, BUNDLE_FILE, SYSTEM_BUNDLES, VARIABLES

PROJECT, THEIRS = authority("project"), authority("theirs")
ENTRY = {"host": "api.test", "header": "Authorization", "value_from": {"secret": "token"}}


def egress(generation: int = 1, **more: Any) -> EgressSpec:
    return EgressSpec.model_validate({"mode": "open", "inject": [ENTRY], "generation": generation, **more})


def told(project: Any = PROJECT, **values: str) -> CredentialsSpec:
    encoded = {name: base64.b64encode(value.encode()).decode() for name, value in (values or {"token": SECRET}).items()}
    return CredentialsSpec(ca_certificate=project.certificate, ca_key=project.key, values=encoded)


def guest_of(world: World, opened: FakeNode, sandbox_id: str) -> FakeGuest:
    return world.host_world.sandboxes[opened.life(sandbox_id).handle].guest


async def make(world: World, opened: FakeNode, **more: Any) -> str:
    sandbox_id = a_sandbox_id()
    credentials = more.pop("credentials", told())
    asked = an_ensure(world, egress=more.pop("egress", egress()), **more).model_copy(
        update={"credentials": credentials}
    )
    await opened.manager.ensure(sandbox_id, asked)
    return sandbox_id


@pytest.fixture(name="world")
def _world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_network_and_guest_are_told(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await make(world, opened, env={"PIP_CERT": "/mine"})
        slot = opened.life(sandbox_id).record.slot_index or 0
        given = opened.network.credentials[slot]
        assert given is not None
        assert given.values == {"token": SECRET}
        guest = guest_of(world, opened, sandbox_id)
        assert guest.initialized_by is not None
        assert guest.initialized_by.image_env == VARIABLES
        assert guest.initialized_by.env["PIP_CERT"] == "/mine"
        assert guest.files[AUTHORITY_FILE].decode() == PROJECT.certificate
        assert PROJECT.certificate in guest.files[BUNDLE_FILE].decode()
        assert not opened.manager.get(sandbox_id).credentials_missing


async def test_nobody_else_is_told_anything(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create()
        guest = guest_of(world, opened, sandbox_id)
        assert guest.initialized_by is not None
        assert guest.initialized_by.image_env == {}
        assert AUTHORITY_FILE not in guest.files
        assert not opened.manager.get(sandbox_id).credentials_missing


async def test_a_live_change_reaches_the_images_own_bundles(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create()
        guest = guest_of(world, opened, sandbox_id)
        guest.files.put(SYSTEM_BUNDLES[0], b"first\n")
        change = PutEgress(epoch=0, egress=egress(2), credentials=told())
        for _ in range(2):
            await opened.manager.change_egress(sandbox_id, change)
            opened.life(sandbox_id).parts.trusted = None
        assert guest.files[SYSTEM_BUNDLES[0]].decode() == f"first\n{PROJECT.certificate}"
        assert guest.files[BUNDLE_FILE] == guest.files[SYSTEM_BUNDLES[0]]
        await opened.manager.change_egress(sandbox_id, PutEgress(epoch=0, egress=egress(3), credentials=told(THEIRS)))
        assert guest.files[SYSTEM_BUNDLES[0]].decode() == f"first\n{PROJECT.certificate}{THEIRS.certificate}"
        assert guest.files[AUTHORITY_FILE].decode() == THEIRS.certificate


async def test_what_cannot_be_written_fails_no_start(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create()
        guest_of(world, opened, sandbox_id).files.put("/etc/sandlot", b"a file in the way")
        change = PutEgress(epoch=0, egress=egress(2), credentials=told())
        report = await opened.manager.change_egress(sandbox_id, change)
        assert report.state == "applied"


@pytest.mark.parametrize("crash", [True, False])
async def test_a_restarted_node_says_what_it_lacks_until_it_is_told(world: World, crash: bool) -> None:
    async with (crashing_node if crash else node)(world) as opened:
        sandbox_id = await make(world, opened)
    async with node(world) as opened:
        slot = opened.life(sandbox_id).record.slot_index or 0
        assert opened.network.credentials[slot] is None
        assert opened.manager.get(sandbox_id).credentials_missing
        await opened.manager.change_egress(sandbox_id, PutEgress(epoch=0, egress=egress(), credentials=told()))
        given = opened.network.credentials[slot]
        assert given is not None
        assert given.values == {"token": SECRET}
        assert not opened.manager.get(sandbox_id).credentials_missing


async def test_half_of_them_is_too_little(world: World) -> None:
    async with node(world) as opened:
        assert opened.manager.get(await make(world, opened, credentials=told(other="x"))).credentials_missing
        assert opened.manager.get(await make(world, opened, credentials=None)).credentials_missing


async def test_they_go_on_until_nothing_is_injected(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await make(world, opened)
        slot = opened.life(sandbox_id).record.slot_index or 0
        await opened.manager.change_egress(sandbox_id, PutEgress(epoch=0, egress=egress(2, deny=["evil.test"])))
        assert opened.network.credentials[slot] is not None
        without = EgressSpec(mode="open", generation=3)
        await opened.manager.change_egress(sandbox_id, PutEgress(epoch=0, egress=without))
        assert opened.network.credentials[slot] is None
        assert opened.life(sandbox_id).parts.credentials is None


async def test_the_end_forgets_them(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await make(world, opened)
        life = opened.life(sandbox_id)
        await opened.manager.stop(sandbox_id, a_stop())
        assert life.parts.credentials is None


async def test_no_value_is_written_down_or_said(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with node(world) as opened:
        sandbox_id = await make(world, opened)
        assert SECRET not in repr(opened.life(sandbox_id).parts)
        assert SECRET not in repr(world.ledger)
        assert SECRET not in opened.manager.get(sandbox_id).model_dump_json()
        asked = PutEgress(epoch=0, egress=egress(2), credentials=told())
        encoded = base64.b64encode(SECRET.encode()).decode()
        assert encoded not in repr(asked)
        opened.network.fail("apply_egress")
        with pytest.raises(ProblemError):
            await opened.manager.change_egress(sandbox_id, asked)
    assert SECRET not in caplog.text
    assert encoded not in caplog.text
    await asyncio.to_thread(_nowhere_below, world.directory, SECRET.encode(), encoded.encode())


def _nowhere_below(directory: Path, *secrets: bytes) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(secret in content for secret in secrets), path
