"""Ends the sandboxes of a node through the node itself, so that each gets its reason, its drain and its record."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

import aiohttp

from sandboxd.contract.messages import NodeReport
from sandboxd.contract.states import TERMINAL

_AT_ONCE: Final = 8
_GRACE_SECONDS: Final = 5
_WAIT_SECONDS: Final = 60


async def end_all(node_socket: Path, say: Callable[[str], None]) -> bool:
    """Stop every sandbox of the node. False when some would not end."""
    async with aiohttp.ClientSession("http://node", connector=aiohttp.UnixConnector(str(node_socket))) as session:
        async with session.get("/node/v1/report") as answer:
            report = NodeReport.model_validate_json(await answer.read())
        living = [sandbox for sandbox in report.sandboxes if sandbox.state not in TERMINAL]
        if not living:
            return True
        say(f"ending {len(living)} sandboxes")
        gate = asyncio.Semaphore(_AT_ONCE)

        async def end(sandbox_id: str, generation: int) -> bool:
            query = {
                "grace_seconds": str(_GRACE_SECONDS),
                "wait_seconds": str(_WAIT_SECONDS),
                "reason": "operator_stopped",
                "generation": str(generation + 1),
                "epoch": str(report.epoch),
            }
            async with gate, session.delete(f"/node/v1/sandboxes/{sandbox_id}", params=query) as answer:
                return answer.status == 200

        async with asyncio.TaskGroup() as group:
            ends = [group.create_task(end(sandbox.id, sandbox.generation)) for sandbox in living]
    return all(task.result() for task in ends)
