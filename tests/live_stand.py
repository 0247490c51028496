"""A node of one sandbox for tests: the routes of clients' calls over any Guest, on a port of its own."""

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from aiohttp import web

from sandboxd.app.answers import problems
from sandboxd.app.data_plane import routes
from sandboxd.contract.problems import ProblemError
from sandboxd.guest_client.base import Guest, Init
from sandboxd.processes.live import Ending

SANDBOX_ID = "sbx" + "a" * 20
BASE = f"/v1/sandboxes/{SANDBOX_ID}"


def init_of(**changes: object) -> Init:
    fields: dict[str, object] = {
        "hostname": SANDBOX_ID, "env": {"FROM_SANDBOX": "yes"}, "image_env": {}, "user": None, "cwd": None,
        "image_user": None, "image_cwd": None, "address": "127.0.0.1", "gateway": "127.0.0.1", "resolvers": (),
        "max_processes": 4096, "cpus": 1.0, "memory_bytes": 1 << 30, "now_us": 1_790_000_000_000_000, "seed": b"s" * 32,
        "backstop_seconds": None,
    }  # fmt: skip
    return Init(**(fields | changes))  # pyright: ignore[reportArgumentType] - the names above are Init's


@dataclass
class StandSandbox:
    """A LiveSandbox that is what a test says it is."""

    guest: Guest
    id: str = SANDBOX_ID
    shell: str | None = "/bin/sh"
    ended: Ending = field(default_factory=Ending)
    reports: list[Exception] = field(default_factory=list[Exception])
    users: int = 0
    started: int = 0

    refusals: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def denied(self, begin: datetime, end: datetime) -> list[dict[str, Any]]:
        return self.refusals if begin <= end else []

    def end_problem(self) -> ProblemError:
        return ProblemError("sandbox_ended", "it has ended", reason="out_of_memory", state="failed", ended_at=None)

    def process_started(self) -> None:
        self.started += 1

    def report_guest(self, error: Exception) -> None:
        self.reports.append(error)

    @asynccontextmanager
    async def use(self, sandbox_id: str) -> AsyncGenerator["StandSandbox"]:
        if sandbox_id != self.id:
            raise ProblemError("moved", "not here")
        if self.ended.is_set():
            raise self.end_problem()
        self.users += 1
        try:
            yield self
        finally:
            self.users -= 1


def open_socket() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.settimeout(0)
    return made


@asynccontextmanager
async def serving(sandbox: StandSandbox) -> AsyncGenerator[str]:
    """Serve the sandbox; the base URL of its calls."""
    app = web.Application(middlewares=[problems], client_max_size=0)
    leaving = Ending()
    app.add_routes(routes(sandbox, leaving=leaving))
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1, auto_decompress=False)
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", 0))
    try:
        await web.SockSite(runner, listener).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}{BASE}"
    finally:
        leaving.set()
        await runner.cleanup()
        listener.close()
        await asyncio.sleep(0)
