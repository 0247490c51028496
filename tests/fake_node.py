"""A node for the api's tests: the node seam in memory, over a unix socket, with switches for how it misbehaves.

`python tests/fake_node.py RUN_DIR` serves one by itself, for measurements.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import aiohttp
import uvloop
from aiohttp import web

from fake_tunnels import FakeTunnels
from live_stand import StandSandbox
from netpolicy.platform import Platform
from netpolicy.verdict import parse_destination, verdict
from sandboxd.app import files
from sandboxd.app.bounds import Bounds
from sandboxd.app.call import DataPlane, utc_now
from sandboxd.app.query import Query
from sandboxd.contract import CONTRACT_VERSION
from sandboxd.contract.ids import image_id_from_digest, new_id, process_id_from_key
from sandboxd.contract.messages import (
    Capacity,
    CredentialsSpec,
    EgressReport,
    EgressSpec,
    EnsureSandbox,
    ExplainOnNode,
    NodeImage,
    NodeReport,
    PatchSandbox,
    PutEgress,
    ReportAnswer,
    RuntimeInfo,
    SandboxReport,
    explained,
)
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.processes import Process, ProcessList, ProcessSpec, RunResult, RunSpec, SignalSpec, StdinResult
from sandboxd.contract.reasons import ProcessReason, SandboxReason
from sandboxd.contract.states import TERMINAL, ProcessState, SandboxState
from sandboxd.contract.trust import Accepted, GatewayInfo, Trust
from sandboxd.contract.validation import invalid
from sandboxd.guest_client.fake import FakeGuest

NODE_ADDRESSES = frozenset({IPv4Address("45.33.8.2")})
DIGEST = "sha256:" + "ab" * 32
IMAGE = image_id_from_digest(DIGEST)


@dataclass(slots=True)
class Held:
    """A sandbox of the fake."""

    report: SandboxReport
    ensure: EnsureSandbox
    processes: dict[str, Process] = field(default_factory=dict[str, Process])
    stdin: bytes = b""
    guest: FakeGuest = field(default_factory=FakeGuest)
    """Only its files are used."""


@dataclass(slots=True)
class FakeLog:
    """What the node has of one log: positions and objects."""

    lines: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    over: bool = False
    broken: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, text: str, process_id: str = "prc" + "a" * 20, **more: Any) -> None:
        row = {"at": "2026-11-22T11:00:00.000Z", "process_id": process_id, "kind": "stdout", "text": text, **more}
        self.lines.append(((self.lines[-1][0] if self.lines else 0) + 100, json.dumps(row, separators=(",", ":"))))
        self.changed.set()


@dataclass(slots=True)
class Switches:
    """How the node misbehaves. `times` counts down; a switch without it holds until it is reset."""

    refuse: str | None = None
    """Answer ensure with this problem code."""
    refuse_reason: str | None = None
    hang: asyncio.Event | None = None
    """Do ensures, but answer only when this is set."""
    before: asyncio.Event | None = None
    """Do ensures only when this is set."""
    die: int = 0
    """Do this many ensures, and break the connection instead of answering."""
    deaf_stops: int = 0
    """Break the connection of this many stops, doing nothing."""
    close_egress: int = 0
    """Fail this many changes of a policy, with everything closed."""
    broken_output: bool = False
    """Break the connection in the middle of an output."""
    run_hangs: asyncio.Event | None = None
    """Answer runs only when this is set."""
    seconds: float = 0


class FakeNode:
    """Serves `<run>/api/<name>.sock` and reports to `<run>/api/api.sock` when told to."""

    def __init__(  # what a node can be told to be
        self,
        run_dir: Path,
        name: str = "sandboxd",
        *,
        cpus: float = 1e6,
        images: bool = True,
        routes: Iterable[web.AbstractRouteDef] = (),
    ) -> None:
        self.routes = list(routes)
        self.id = new_id("nod", os.urandom)
        self.name = name
        self.socket = run_dir / "api" / f"{name}.sock"
        self.api_socket = run_dir / "api" / "api.sock"
        self.sandboxes: dict[str, Held] = {}
        self.tombs: dict[str, int] = {}
        self.switch = Switches()
        self.epoch = 0
        self.gateway: GatewayInfo | None = None
        self.trusts: list[Trust] = []
        self.sequence = 0
        self.incarnation = os.urandom(8).hex()
        self.capacity = Capacity(cpus=cpus, memory_mib=1 << 40, disk_mib=1 << 40, sandboxes=1 << 30)
        self.images = [NodeImage(id=IMAGE, digest=DIGEST, names=["base"], size_bytes=1)] if images else []
        self.ensures: list[str] = []
        self.egress_puts: list[EgressSpec] = []
        self.egress_credentials: list[CredentialsSpec | None] = []
        self.requests: list[web.BaseRequest] = []
        self.cancelled: list[str] = []
        self.logs: dict[str, FakeLog] = {}
        self.tunnels = FakeTunnels(lambda sandbox_id: self._alive(sandbox_id).report, self._keep)
        self.decisions: dict[str, FakeLog] = {}
        self._runner: web.AppRunner | None = None

    # Serving

    async def start(self) -> None:
        app = web.Application(middlewares=[self._problems], client_max_size=64 << 20)
        sandbox = "/v1/sandboxes/{id}"
        process = sandbox + "/processes/{process}"
        app.add_routes(self.routes)
        app.add_routes(self.tunnels.routes())
        app.add_routes(
            [
                web.put("/node/v1/sandboxes/{id}", self._ensure),
                web.get("/node/v1/sandboxes/{id}", self._get),
                web.put("/node/v1/trust", self._trust),
                web.put("/node/v1/uploads/{project}/{sha256}", self._upload),
                web.patch("/node/v1/sandboxes/{id}", self._patch),
                web.delete("/node/v1/sandboxes/{id}", self._stop),
                web.put("/node/v1/sandboxes/{id}/egress", self._put_egress),
                web.post("/node/v1/sandboxes/{id}/egress/explain", self._explain_egress),
                web.post(sandbox + "/run", self._run),
                web.post(sandbox + "/processes", self._start_process),
                web.get(sandbox + "/processes", self._list),
                web.get(process, self._process),
                web.get(process + "/result", self._result),
                web.get(process + "/output", self._output),
                web.post(process + "/stdin", self._stdin),
                web.post(process + "/signal", self._signal),
                web.post(process + "/resize", self._resize),
                *files.routes(DataPlane(self, utc_now, os.urandom, Bounds())),
                web.get(process + "/attach", self._attach),
                web.get(sandbox + "/ports", self._ports),
                web.get("/node/v1/sandboxes/{id}/logs", self._logs),
                web.get("/node/v1/sandboxes/{id}/decisions", self._decisions),
                web.get("/node/v1/sandboxes/{id}/metrics", self._metrics),
            ]
        )
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1, auto_decompress=False)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self.socket)).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
            self.socket.unlink(missing_ok=True)

    @web.middleware
    async def _problems(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.path != "/node/v1/trust":  # not sent for any call, but when keys change
            self.requests.append(request)
        try:
            return await handler(request)
        except ProblemError as error:
            body = error.body(request.headers.get("Sandlot-Request-Id", "none"))
            return web.Response(
                status=error.status, body=json.dumps(body).encode(), content_type="application/problem+json"
            )

    # Reporting

    def report(self, *, full: bool = True, only: list[str] | None = None) -> NodeReport:
        self.sequence += 1
        chosen = self.sandboxes if only is None else {key: self.sandboxes[key] for key in only}
        live = sum(held.report.state not in TERMINAL for held in self.sandboxes.values())
        return NodeReport(
            node_id=self.id,
            name=self.name,
            contract_version=CONTRACT_VERSION,
            version="test",
            runtime=RuntimeInfo(name="fake", version="1", platform="none"),
            epoch=self.epoch,
            boot_id="boot",
            sequence=self.sequence,
            incarnation=self.incarnation,
            full=full,
            address=f"unix:{self.socket}",
            tunnel_host="node.test",
            capacity=self.capacity,
            used=Capacity(cpus=live, memory_mib=live * 1024, disk_mib=live * 8192, sandboxes=live),
            images=self.images,
            sandboxes=[held.report for held in chosen.values()],
            gateway=self.gateway,
        )

    async def send_report(self, report: NodeReport | None = None, *, trust_revision: str = "") -> ReportAnswer:
        """Send a report and do what the answer says."""
        report = (report or self.report()).model_copy(update={"trust_revision": trust_revision})
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self.api_socket))) as session,
            session.post(
                "http://api/internal/v1/node-reports",
                data=report.model_dump_json(),
                headers={"Content-Type": "application/json"},
            ) as answer,
        ):
            answer.raise_for_status()
            result = ReportAnswer.model_validate_json(await answer.read())
        self.epoch = max(self.epoch, result.epoch)
        for sandbox_id in [*result.acknowledged, *result.bury]:
            self.sandboxes.pop(sandbox_id, None)
        return result

    # The node seam

    def end(self, sandbox_id: str, reason: SandboxReason, state: SandboxState = SandboxState.FAILED) -> None:
        held = self.sandboxes[sandbox_id]
        held.report = held.report.model_copy(
            update={"state": state, "reason": reason, "ended_at": datetime.now(UTC), "message": f"ended: {reason}"}
        )

    async def _ensure(self, request: web.Request) -> web.Response:
        sandbox_id = request.match_info["id"]
        body = EnsureSandbox.model_validate_json(await request.read())
        self.ensures.append(sandbox_id)
        if self.switch.before is not None:
            await self.switch.before.wait()
        if self.tombs.get(sandbox_id, 0) > body.generation:
            raise ProblemError("stale_generation", "A newer request was carried out.")
        if body.epoch < self.epoch:
            raise ProblemError("stale_generation", "The epoch is old.")
        if self.switch.refuse is not None:
            raise ProblemError(self.switch.refuse, "As told.", reason=self.switch.refuse_reason)
        if self.switch.seconds:
            await asyncio.sleep(self.switch.seconds)
        if sandbox_id not in self.sandboxes:
            now = datetime.now(UTC)
            seconds = body.spec.timeout_seconds
            self.sandboxes[sandbox_id] = Held(
                SandboxReport(
                    id=sandbox_id,
                    generation=body.generation,
                    state=SandboxState.RUNNING,
                    user=body.spec.user or "user",
                    cwd="/home/user",
                    shell="/bin/bash",
                    started_at=now,
                    expires_at=None if seconds is None else now + timedelta(seconds=seconds),
                    last_active_at=now,
                    tunnels=[self.tunnels.placed(each) for each in body.spec.tunnels],
                    egress_generation=body.spec.egress.generation,
                ),
                body,
            )
        if self.switch.hang is not None:
            await self.switch.hang.wait()
        if self.switch.die > 0:
            self.switch.die -= 1
            _break(request)
        return _json(self.sandboxes[sandbox_id].report)

    def _keep(self, report: SandboxReport) -> None:
        self.sandboxes[report.id].report = report

    def _held(self, request: web.Request) -> Held:
        held = self.sandboxes.get(request.match_info["id"])
        if held is None:
            raise ProblemError("sandbox_not_found", "The node does not know it.")
        return held

    async def _upload(self, request: web.Request) -> web.Response:
        """Take what is sent for what it says it is."""
        total = int(request.query["total_bytes"])
        offset = min(total, int(request.query["offset"]) + len(await request.read()))
        state = {"offset": offset, "total_bytes": total, "complete": offset == total}
        return web.json_response(state, status=201 if offset == total else 200)

    async def _trust(self, request: web.Request) -> web.Response:
        self.trusts.append(Trust.model_validate_json(await request.read()))
        return _json(Accepted(revision=self.trusts[-1].revision))

    async def _get(self, request: web.Request) -> web.Response:
        return _json(self._held(request).report)

    async def _patch(self, request: web.Request) -> web.Response:
        held = self._held(request)
        body = PatchSandbox.model_validate_json(await request.read())
        now = datetime.now(UTC)
        expires = held.report.expires_at
        if "timeout_seconds" in body.model_fields_set:
            expires = None if body.timeout_seconds is None else now + timedelta(seconds=body.timeout_seconds)
        if body.extend_seconds is not None and expires is not None:
            expires = max(expires, now + timedelta(seconds=body.extend_seconds))
        held.report = held.report.model_copy(update={"generation": body.generation, "expires_at": expires})
        return _json(held.report)

    async def _put_egress(self, request: web.Request) -> web.Response:
        held = self._held(request)
        body: PutEgress = _read(PutEgress, await request.read())
        if self.switch.close_egress > 0:
            self.switch.close_egress -= 1
            held.report = held.report.model_copy(update={"egress_closed": True})
            raise ProblemError("egress_not_applied", "The switch says so.")
        if self.switch.hang is not None:
            await self.switch.hang.wait()
        number = body.egress.generation
        held.ensure = held.ensure.model_copy(
            update={"spec": held.ensure.spec.model_copy(update={"egress": body.egress})}
        )
        held.report = held.report.model_copy(
            update={"egress_generation": number, "egress_closed": False, "credentials_missing": False}
        )
        self.egress_puts.append(body.egress)
        self.egress_credentials.append(body.credentials)
        if self.switch.die > 0:
            self.switch.die -= 1
            _break(request)
        return _json(EgressReport(generation=number, applied_generation=number, state="applied", closed_connections=3))

    async def _explain_egress(self, request: web.Request) -> web.Response:
        self._held(request)
        body: ExplainOnNode = _read(ExplainOnNode, await request.read())
        destination = parse_destination(body.destination)
        return _json(explained(verdict(body.egress.policy(), destination, Platform(node_addresses=NODE_ADDRESSES))))

    async def _stop(self, request: web.Request) -> web.Response:
        if self.switch.deaf_stops > 0:
            self.switch.deaf_stops -= 1
            _break(request)
        sandbox_id = request.match_info["id"]
        generation = int(request.query["generation"])
        self.tombs[sandbox_id] = max(generation, self.tombs.get(sandbox_id, 0))
        held = self._held(request)
        if held.report.state not in TERMINAL:
            self.end(sandbox_id, SandboxReason.REQUESTED, SandboxState.STOPPED)
        held.report = held.report.model_copy(update={"generation": generation})
        return _json(held.report)

    # The data plane

    @asynccontextmanager
    async def use(self, sandbox_id: str) -> AsyncGenerator[StandSandbox]:
        """Enter a sandbox as the node's own routes do."""
        yield StandSandbox(self._alive(sandbox_id).guest, sandbox_id)

    def _live(self, request: web.Request) -> Held:
        return self._alive(request.match_info["id"])

    def _alive(self, sandbox_id: str) -> Held:
        held = self.sandboxes.get(sandbox_id)
        if held is None:
            raise ProblemError("moved", "Not on this node.")
        if held.report.state in TERMINAL:
            raise ProblemError("sandbox_ended", "It has ended.", state=held.report.state.value)
        return held

    def _find(self, request: web.Request) -> tuple[Held, Process]:
        held = self._live(request)
        process = held.processes.get(request.match_info["process"])
        if process is None:
            raise ProblemError("process_not_found", "There is no such process.")
        return held, process

    async def _run(self, request: web.Request) -> web.Response:
        self._live(request)
        spec = _read(RunSpec, await request.read())
        if self.switch.run_hangs is not None:
            try:
                await self.switch.run_hangs.wait()
            except asyncio.CancelledError:
                self.cancelled.append(request.match_info["id"])
                raise
        return _json(_result(new_id("prc", os.urandom), " ".join(spec.argv or [spec.shell or ""]) + "\n"))

    async def _start_process(self, request: web.Request) -> web.Response:
        held = self._live(request)
        spec = _read(ProcessSpec, await request.read())
        key = request.headers.get("Idempotency-Key")
        fresh = process_id_from_key(request.match_info["id"], key) if key else new_id("prc", os.urandom)
        process_id = spec.id or fresh
        status = 200 if process_id in held.processes else 201
        held.processes.setdefault(process_id, _process(process_id, request.match_info["id"], spec))
        return _json(held.processes[process_id], status)

    async def _list(self, request: web.Request) -> web.Response:
        return _json(ProcessList(items=list(self._live(request).processes.values())))

    async def _process(self, request: web.Request) -> web.Response:
        return _json(self._find(request)[1])

    async def _result(self, request: web.Request) -> web.Response:
        return _json(_result(self._find(request)[1].id, "hello\n"))

    async def _output(self, request: web.Request) -> web.StreamResponse:
        self._find(request)
        answer = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await answer.prepare(request)
        try:
            for number in range(int(request.query.get("lines", "3"))):
                await answer.write(json.dumps({"kind": "stdout", "seq": number}).encode() + b"\n")
            if self.switch.broken_output:
                _break(request)
            if request.query.get("follow") == "true":
                await asyncio.Event().wait()
        except (asyncio.CancelledError, ConnectionError):
            self.cancelled.append(request.match_info["process"])
            raise
        return answer

    async def _attach(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=("sandlot.process.v1",), compress=False)
        await socket.prepare(request)
        await socket.receive()
        return socket

    async def _ports(self, request: web.Request) -> web.Response:
        self._live(request)
        query = Query(request)
        port = query.integer("port", 8000, 1, 65535)
        query.number("wait_seconds", 0, 0, 60)
        query.check()
        return web.json_response({"items": [{"port": port, "protocol": "tcp", "address": "0.0.0.0", "pid": 7}]})  # noqa: S104 - an answer

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        """Answer the lines a test gave, from a position on; while it follows, those that come later."""
        answer = web.StreamResponse(headers={"Content-Type": "application/vnd.sandlot.log-lines"})
        await answer.prepare(request)
        log = self.logs.setdefault(request.match_info["id"], FakeLog())
        position = int(request.query["after"])
        try:
            while True:
                for at, line in log.lines:
                    if at > position:
                        await answer.write(b"%d %s\n" % (at, line.encode()))
                        position = at
                if log.broken:
                    _break(request)
                if request.query["follow"] != "true" or log.over:
                    return answer
                log.changed.clear()
                await log.changed.wait()
        except (asyncio.CancelledError, ConnectionError):
            self.cancelled.append(request.match_info["id"])
            raise

    async def _decisions(self, request: web.Request) -> web.Response:
        query, log = request.query, self.decisions.get(request.match_info["id"], FakeLog())
        lines = [(at, line) for at, line in log.lines if at > int(query["after"])]
        lines = [(at, line) for at, line in lines if f'"verdict":"{query.get("verdict", "")}' in line]
        text = "".join(f"{at} {line}\n" for at, line in lines[: int(query.get("limit", 1000))])
        return web.Response(text=text, content_type="application/vnd.sandlot.log-lines")

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.json_response({"items": [], "next_cursor": None, "asked": dict(request.query)})

    async def _stdin(self, request: web.Request) -> web.Response:
        held, _ = self._find(request)
        async for chunk in request.content.iter_any():
            held.stdin += chunk
        return _json(StdinResult(offset=len(held.stdin), closed=request.query.get("close") == "true"))

    async def _signal(self, request: web.Request) -> web.Response:
        self._find(request)
        _read(SignalSpec, await request.read())
        return web.Response(status=204)

    async def _resize(self, request: web.Request) -> web.Response:
        self._find(request)
        return web.Response(status=204)


def _break(request: web.Request) -> None:
    """Cut the connection as a dying process does."""
    if request.transport is not None:
        request.transport.abort()
    raise ConnectionResetError


def _read(model: Any, data: bytes) -> Any:
    try:
        return model.model_validate_json(data or b"{}")
    except ValueError as error:
        raise invalid(error) from error  # pyright: ignore[reportArgumentType] - pydantic's error is a ValueError


def _json(model: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=model.model_dump_json().encode(), content_type="application/json")


def _process(process_id: str, sandbox_id: str, spec: ProcessSpec) -> Process:
    return Process(
        id=process_id,
        sandbox_id=sandbox_id,
        argv=spec.argv or ["/bin/bash", "-c", spec.shell or ""],
        cwd="/",
        user="user",
        uid=1000,
        gid=1000,
        tag=spec.tag,
        pid=2,
        state=ProcessState.RUNNING,
        started_at=datetime.now(UTC),
        duration_seconds=0,
        cpu_used_seconds=0,
        peak_memory_bytes=0,
        first_seq=0,
        next_seq=0,
        stdout_bytes=0,
        stderr_bytes=0,
        stdin_offset=0,
        stdin_closed=False,
    )


def _result(process_id: str, stdout: str) -> RunResult:
    return RunResult(
        process_id=process_id,
        running=False,
        exit_code=0,
        reason=ProcessReason.EXITED,
        stdout=stdout,
        stderr="",
        stdout_bytes=len(stdout.encode()),
        stderr_bytes=0,
        truncated=False,
        stdout_omitted_bytes=0,
        stderr_omitted_bytes=0,
        lossy=False,
        next_seq=len(stdout.encode()),
        started_at=datetime.now(UTC),
        ended_at=datetime.now(UTC),
        duration_seconds=0,
    )


@asynccontextmanager
async def fake_node(run_dir: Path, name: str = "sandboxd", **settings: Any) -> AsyncGenerator[FakeNode]:
    """Serve a node while the context lasts. It does not report by itself."""
    node = FakeNode(run_dir, name, **settings)
    await node.start()
    try:
        yield node
    finally:
        await node.stop()


async def _serve(run_dir: Path) -> None:
    async with fake_node(run_dir) as node:
        while True:
            try:
                await node.send_report(None if len(node.sandboxes) < 2000 else node.report(full=False, only=[]))
            except aiohttp.ClientError:
                await asyncio.sleep(0.2)
                continue
            await asyncio.sleep(5)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(Path(sys.argv[1])))
