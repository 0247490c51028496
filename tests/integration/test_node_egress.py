"""A node changes what a sandbox may reach: written first, then true, and closed where that fails."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from netpolicy.platform import Platform
from node_kit import World, crashing_node, node
from sandboxd.contract.messages import EgressSpec, ExplainOnNode, PutEgress
from sandboxd.contract.problems import ProblemError

ONE: dict[str, Any] = {"mode": "allowlist", "allow": ["1.2.3.4"]}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def change(generation: int, **policy: Any) -> PutEgress:
    return PutEgress(epoch=0, egress=EgressSpec.model_validate({**policy, "generation": generation}))


async def test_a_change_is_true_when_it_is_answered(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create()
        slot = opened.life(sandbox_id).record.slot_index or 0
        assert opened.manager.get(sandbox_id).egress_generation == 1
        opened.network.closes = 4
        report = await opened.manager.change_egress(sandbox_id, change(2, **ONE))
        assert (report.applied_generation, report.state, report.closed_connections) == (2, "applied", 4)
        assert opened.network.egress[slot].allow == ["1.2.3.4"]
        assert opened.manager.get(sandbox_id).egress_generation == 2
        again = await opened.manager.change_egress(sandbox_id, change(2, **ONE))
        assert again.closed_connections == 0
        for older in (change(1, mode="open"), change(2, mode="open")):
            with pytest.raises(ProblemError) as refused:
                await opened.manager.change_egress(sandbox_id, older)
            assert refused.value.code == "stale_generation"
        assert opened.network.egress[slot].mode == "allowlist"


async def test_what_fails_is_closed_and_says_so_until_it_succeeds(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create()
        slot = opened.life(sandbox_id).record.slot_index or 0
        opened.network.fail("apply_egress")
        with pytest.raises(ProblemError) as refused:
            await opened.manager.change_egress(sandbox_id, change(2, **ONE))
        assert refused.value.code == "egress_not_applied"
        assert opened.network.egress[slot].mode == "blocked"
        report = opened.manager.get(sandbox_id)
        assert (report.egress_generation, report.egress_closed) == (1, True)
        await opened.manager.change_egress(sandbox_id, change(2, **ONE))
        report = opened.manager.get(sandbox_id)
        assert (report.egress_generation, report.egress_closed) == (2, False)


async def test_what_cannot_be_written_is_not_done(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create()
        slot = opened.life(sandbox_id).record.slot_index or 0
        before = opened.network.egress[slot]
        world.ledger.broken = True
        with pytest.raises(ProblemError) as refused:
            await opened.manager.change_egress(sandbox_id, change(2, **ONE))
        assert refused.value.code == "disk_full"
        assert opened.network.egress[slot] == before
        world.ledger.broken = False


async def test_a_caller_that_goes_does_not_stop_it(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create()
        slot = opened.life(sandbox_id).record.slot_index or 0
        asking = asyncio.ensure_future(opened.manager.change_egress(sandbox_id, change(2, **ONE)))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        async with asyncio.timeout(20):
            while opened.manager.get(sandbox_id).egress_generation != 2:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert opened.network.egress[slot].allow == ["1.2.3.4"]


@pytest.mark.parametrize("crash", [True, False])
async def test_a_restart_makes_the_last_policy_true(world: World, crash: bool) -> None:
    async with (crashing_node if crash else node)(world) as opened:
        sandbox_id = await opened.create()
        opened.network.fail("apply_egress")
        with pytest.raises(ProblemError):
            await opened.manager.change_egress(sandbox_id, change(2, **ONE))
    async with node(world) as opened:
        slot = opened.life(sandbox_id).record.slot_index or 0
        assert opened.network.egress[slot] == change(2, **ONE).egress
        assert opened.manager.get(sandbox_id).egress_generation == 2


async def test_a_claimed_sandbox_has_its_own_policy(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create(egress=change(1, **ONE).egress)
        slot = opened.life(sandbox_id).record.slot_index or 0
        assert opened.network.egress[slot].allow == ["1.2.3.4"]


async def test_strangers_and_the_ended_are_told_apart(world: World) -> None:
    async with node(world) as opened:
        with pytest.raises(ProblemError) as refused:
            await opened.manager.change_egress("sbx" + "a" * 20, change(2, **ONE))
        assert refused.value.code == "sandbox_not_found"


async def test_explain_knows_the_nodes_own_denials(world: World) -> None:
    async with node(world) as opened:
        sandbox_id = await opened.create()
        opened.network.platform = Platform()
        asked = ExplainOnNode(destination="10.0.0.1:80", egress=change(1, mode="open").egress)
        said = opened.manager.explain_egress(sandbox_id, asked)
        assert (said.verdict, said.source, said.reason) == ("deny", "platform", "private_address")
