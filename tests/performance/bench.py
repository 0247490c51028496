"""`make bench`: every budget measured against the raw tool in one run, written to docs/benchmarks.md."""

import asyncio
import gc
import importlib
import json
import os
import platform as host
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import aiohttp

import egress
import pool
import report
from files import files
from harness import Platform, cache_dir
from harness import platform as start
from images import images
from raw_sandbox import TOKEN, RawBox, RawSandbox, raw_box
from report import Row, Run, median, percentile
from sandboxd.contract.frames import MEDIA_TYPE
from terminal import terminal

ROUNDS = 15
SMALL = {"memory_mib": 256}
STREAM_BYTES = 400 * 1024 * 1024
RAW_IDLE = 60
IDLE_SANDBOXES = int(os.environ.get("SANDLOT_BENCH_IDLE", "200"))


class Api:
    """The public API by a client that costs little itself: what is measured is the other side."""

    def __init__(self, platform: Platform, session: aiohttp.ClientSession) -> None:
        self._url = platform.url
        self._session = session

    async def call(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """Make one call; RuntimeError unless it succeeds."""
        data = None if body is None else json.dumps(body).encode()
        async with self._session.request(method, self._url + path, data=data) as answer:
            text = await answer.read()
            if not answer.ok:
                raise RuntimeError(f"{method} {path}: {answer.status} {text!r}")
            return json.loads(text)

    async def create(self, **fields: object) -> str:
        return (await self.call("POST", "/v1/sandboxes", fields))["id"]

    async def run(self, sandbox: str, *argv: str) -> dict[str, Any]:
        return await self.call("POST", f"/v1/sandboxes/{sandbox}/run", {"argv": argv})

    async def delete(self, sandbox: str) -> None:
        await self.call("DELETE", f"/v1/sandboxes/{sandbox}?grace_seconds=0")


@asynccontextmanager
async def client(platform: Platform) -> AsyncGenerator[Api]:
    """Connections to one platform."""
    headers = {"Authorization": f"Bearer {platform.key}", "Content-Type": "application/json"}
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(headers=headers, connector=connector, timeout=timeout) as session:
        yield Api(platform, session)


async def cold_create(platform: Platform, raw: RawBox) -> list[Row]:
    """Create to the first output of `node -v`, and what it costs in CPU."""
    ours: list[float] = []
    cpu: list[float] = []
    theirs: list[float] = []
    their_cpu: list[float] = []
    ids: list[str] = []
    async with client(platform) as api:
        for number in range(ROUNDS + 1):
            before = platform.cpu_seconds()
            begun = time.perf_counter()
            ids.append(await api.create(resources=SMALL))
            answered = time.perf_counter()
            used = platform.cpu_seconds(ids[-1]) - before
            resumed = time.perf_counter()
            done = await api.run(ids[-1], "node", "-v")
            elapsed = answered - begun + time.perf_counter() - resumed
            assert done["stdout"].startswith("v"), done
            begun = time.perf_counter()
            sandbox = await raw.create()
            sandbox.exec(["node", "-v"])
            raw_elapsed = time.perf_counter() - begun
            await raw.remove(sandbox)
            other = await raw.create()
            raw_used = other.command_cpu_seconds + await raw.cpu_when_serving(other)
            await raw.remove(other)
            if number:  # the first warms page caches on both sides
                ours.append(elapsed * 1000)
                theirs.append(raw_elapsed * 1000)
                cpu.append(used * 1000)
                their_cpu.append(raw_used * 1000)
        for each in ids:
            await api.delete(each)
    return [
        Row(
            name="create → first output of `node -v`, no pool, over HTTP",
            unit="ms",
            value=median(ours),
            baseline=median(theirs),
            baseline_name="runsc create + start + control-socket exec, same bundle and slot",
            limit=1.3,
            note=f"p50 of {ROUNDS}, in turn; p90 {percentile(ours, 90):.0f} ms against {percentile(theirs, 90):.0f} ms",
        ),
        Row(
            name="CPU of a cold create",
            unit="core-ms",
            value=median(cpu),
            baseline=median(their_cpu),
            baseline_name="runsc create + start until PID 1 serves: commands, sentry, gofer, guest",
            limit=1.2,
            note="CPU of api, node agent, their children and the sandbox from the request to its answer",
        ),
    ]


async def round_trip(platform: Platform, raw: RawBox) -> list[Row]:
    """`true`, over and over."""
    ours: list[float] = []
    theirs: list[float] = []
    sandbox = await raw.create()
    async with client(platform) as api:
        ours_id = await api.create(resources=SMALL)
        for _ in range(200):
            begun = time.perf_counter()
            done = await api.run(ours_id, "true")
            ours.append((time.perf_counter() - begun) * 1000)
            assert done["exit_code"] == 0
            begun = time.perf_counter()
            sandbox.exec(["true"])
            theirs.append((time.perf_counter() - begun) * 1000)
        await api.delete(ours_id)
    await raw.remove(sandbox)
    return [
        Row(
            name="one process round trip (`true`), over HTTP, p50",
            unit="ms",
            value=median(ours),
            baseline=median(theirs),
            baseline_name="control-socket exec",
            limit=2.0,
            note=f"200 in turn; p99 {percentile(ours, 99):.1f} ms against {percentile(theirs, 99):.1f} ms",
        ),
        Row(name="the same, absolute", unit="ms", value=median(ours), limit=8),
    ]


async def _drain(response: aiohttp.ClientResponse) -> int:
    total = 0
    async for chunk in response.content.iter_any():
        total += len(chunk)
    return total


def _guest_of(raw: RawBox) -> aiohttp.ClientSession:
    """Return a client of raw sandboxes' guests, by sockets born in the router namespace."""
    connector = aiohttp.TCPConnector(socket_factory=raw.socket_for)
    return aiohttp.ClientSession(connector=connector, headers={"Authorization": f"Bearer {TOKEN}"})


async def _init(http: aiohttp.ClientSession, raw: RawBox, sandbox: RawSandbox) -> str:
    """Wait until the guest listens, and tell it what it has to know; the base of its addresses."""
    base = f"http://{sandbox.slot.address}:49979/v1"
    while True:
        try:
            async with http.post(f"{base}/init", json=raw.init_of(sandbox)) as answer:
                await answer.read()
                return base
        except aiohttp.ClientConnectorError:
            await asyncio.sleep(0.01)


async def _direct(sandbox: RawSandbox, raw: RawBox, spec: dict[str, Any]) -> float:
    """MB/s of a process's output, straight from the guest through a socket born in the router namespace."""
    async with _guest_of(raw) as http:
        base = await _init(http, raw, sandbox)
        begun = time.perf_counter()
        async with http.post(f"{base}/processes", params={"follow": "1"}, json=spec) as response:
            total = await _drain(response)
        return total / (time.perf_counter() - begun) / 1e6


async def throughput(platform: Platform, raw: RawBox) -> list[Row]:
    """Standard output through api and node, against a direct connection to the guest."""
    command = ["head", "-c", str(STREAM_BYTES), "/dev/zero"]
    guest_spec = {"argv": command, "output": {"mode": "block", "ring_bytes": 4194304}}
    spec = {"argv": command, "output": {"mode": "block"}}
    ours: list[float] = []
    theirs: list[float] = []
    sandbox = await raw.create()
    headers = {"Authorization": f"Bearer {platform.key}", "Accept": MEDIA_TYPE}
    async with client(platform) as api, aiohttp.ClientSession(headers=headers) as stream:
        ours_id = await api.create(resources=SMALL)
        path = f"/v1/sandboxes/{ours_id}/processes"
        for number in range(4):
            theirs.append(await _direct(sandbox, raw, {"id": raw.process_id(), **guest_spec}))
            begun = time.perf_counter()
            process = await api.call("POST", path, spec)
            url = f"{platform.url}{path}/{process['id']}/output"
            async with stream.get(url, params={"follow": "true"}) as response:
                total = await _drain(response)
            ours.append(total / (time.perf_counter() - begun) / 1e6)
            assert total > STREAM_BYTES, number
        await api.delete(ours_id)
    await raw.remove(sandbox)
    return [
        Row(
            name="standard output, binary frames, through api and node",
            unit="MB/s",
            value=median(ours),
            baseline=median(theirs),
            baseline_name="direct connection to the guest",
            limit=0.6,
            more_is_better=True,
            note=f"{STREAM_BYTES >> 20} MiB of a process in `block` mode, p50 of 4, in turn",
        ),
    ]


async def idle(platform: Platform, raw: RawBox) -> list[Row]:
    """Memory and CPU of sandboxes that do nothing."""
    raws = [await raw.create() for _ in range(RAW_IDLE)]
    for sandbox in raws:
        async with _guest_of(raw) as http:
            await _init(http, raw, sandbox)
    await asyncio.sleep(2)
    raw_each = _group_mib(raw.instance) / len(raws)
    for sandbox in raws:
        await raw.remove(sandbox)
    before_free, before = _available_mib(), _group_mib(platform.instance) + _programs_mib(platform)
    limit = asyncio.Semaphore(4)
    ids: list[str] = []
    async with client(platform) as api:

        async def one() -> None:
            async with limit:
                ids.append(await api.create(resources=SMALL, wait_seconds=120))

        begun = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(IDLE_SANDBOXES):
                group.create_task(one())
        rate = IDLE_SANDBOXES / (time.perf_counter() - begun)
        await asyncio.sleep(5)
        each = (_group_mib(platform.instance) + _programs_mib(platform) - before) / IDLE_SANDBOXES
        by_available = (before_free - _available_mib()) / IDLE_SANDBOXES
        busy, begun = _used_seconds(platform), time.perf_counter()
        await asyncio.sleep(20)
        core = (_used_seconds(platform) - busy) / (time.perf_counter() - begun) / IDLE_SANDBOXES * 100
        restart = await _restart(platform, api, ids)
        begun = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for each_id in ids:
                group.create_task(api.delete(each_id))
        deleted = time.perf_counter() - begun
    return [
        Row(
            name=f"memory of an idle sandbox, {IDLE_SANDBOXES} at once, by control group",
            unit="MiB",
            value=each,
            baseline=raw_each,
            baseline_name=f"raw runsc with guest, gofer and slot, {RAW_IDLE} at once",
            limit=1.15,
            note="what their groups hold and api and node grew by; "
            f"by MemAvailable of the whole machine {by_available:.1f} MiB each; "
            f"created at {rate:.1f}/s, four at a time; all deleted in {deleted:.1f} s",
        ),
        Row(
            name="CPU of an idle sandbox",
            unit="% of a core",
            value=core,
            limit=0.06,
            note="api, node and launcher included, 20 s",
        ),
        restart,
    ]


async def _restart(platform: Platform, api: Api, ids: list[str]) -> Row:
    before = platform.pid("node")
    begun = time.perf_counter()
    os.kill(before, 9)
    while True:
        try:
            await api.run(ids[0], "true")
        except (aiohttp.ClientError, RuntimeError):
            await asyncio.sleep(0.01)
            continue
        if platform.pid("node") != before:
            break
    elapsed = time.perf_counter() - begun
    for each in ids:
        assert (await api.run(each, "true"))["exit_code"] == 0
    return Row(
        name=f"node agent killed → a sandbox answers again, {len(ids)} sandboxes adopted",
        unit="s",
        value=elapsed,
        note="includes the launcher's restart; afterwards every one of them answers",
    )


async def api_overhead(_platform: Platform, _raw: RawBox) -> list[Row]:
    """The api and its store around a runtime that does nothing."""
    rows: list[Row] = []
    with start(runtime="fake", max_sandboxes="4000", memory_overcommit="64") as platform:
        async with client(platform) as api:
            for concurrent in (1, 8, 32):
                count = 200 if concurrent == 1 else 1200
                samples: list[float] = []
                limit = asyncio.Semaphore(concurrent)
                body = {"resources": {"memory_mib": 64}, "timeout_seconds": 600}

                async def one(
                    limit: asyncio.Semaphore = limit, samples: list[float] = samples, body: Any = body
                ) -> str:
                    async with limit:
                        begun = time.perf_counter()
                        created = await api.create(**body)
                        samples.append((time.perf_counter() - begun) * 1000)
                        return created

                gc.collect()
                begun = time.perf_counter()
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(one()) for _ in range(count)]
                rate = count / (time.perf_counter() - begun)
                async with asyncio.TaskGroup() as group:
                    for task in tasks:
                        group.create_task(api.delete(task.result()))
                if concurrent == 1:
                    rows.append(
                        Row(
                            name="api + store + node overhead of a create (fake runtime), p50",
                            unit="ms",
                            value=median(samples),
                            limit=5,
                            note=f"p99 {percentile(samples, 99):.1f} ms",
                        )
                    )
                rows.append(
                    Row(
                        name=f"creates per second over the fake runtime, {concurrent} at once",
                        unit="/s",
                        value=rate,
                        limit=300 if concurrent == 32 else None,
                        more_is_better=True,
                        note=f"{count} creates; p50 {median(samples):.1f} ms, p99 {percentile(samples, 99):.1f} ms",
                    )
                )
    return rows


def _available_mib() -> float:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no MemAvailable")


def _group_mib(instance: str) -> float:
    """Memory charged to all sandboxes of an instance."""
    group = Path(f"sandlot-{instance}", "sandboxes")
    v1 = Path("/sys/fs/cgroup/memory", group, "memory.usage_in_bytes")
    v2 = Path("/sys/fs/cgroup", group, "memory.current")
    return int((v1 if v1.exists() else v2).read_text()) / (1 << 20)


def _programs_mib(platform: Platform) -> float:
    """Memory of api and node, their share of what is shared counted."""
    total = 0
    for program in ("api", "node"):
        rollup = Path(f"/proc/{platform.pid(program)}/smaps_rollup").read_text()
        total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return total / 1024


def _used_seconds(platform: Platform) -> float:
    """CPU time so far of launcher, api and node, and of all sandboxes."""
    group = f"sandlot-{platform.instance}"
    v1, v2 = Path("/sys/fs/cgroup/cpuacct", group, "cpuacct.usage"), Path("/sys/fs/cgroup", group, "cpu.stat")
    sandboxes = int(v1.read_text()) / 1e9 if v1.exists() else int(v2.read_text().split()[1]) / 1e6
    return platform.cpu_seconds() + sandboxes


BENCHMARKS: dict[str, Callable[[Platform, RawBox], Awaitable[list[Row]]]] = {
    "round_trip": round_trip,
    "cold_create": cold_create,
    "throughput": throughput,
    "files": files,
    "terminal": terminal,
    "api_overhead": api_overhead,
    "idle": idle,
    "images": images,
    "imports": lambda platform, raw: importlib.import_module("imports").imports(platform, raw),
    "packs": lambda platform, raw: importlib.import_module("packs").packs(platform, raw),
    "imageapi": lambda platform, raw: importlib.import_module("imageapi").imageapi(platform, raw),
    **pool.benchmarks(client),
    "tunnels": lambda platform, raw: importlib.import_module("raw_tunnels").tunnels(platform, raw),
    **egress.benchmarks(client),
    "names": lambda platform, raw: importlib.import_module("names").names(platform, raw),
    "inject": lambda platform, raw: importlib.import_module("inject").inject(platform, raw),
    "gateway": lambda platform, raw: importlib.import_module("gateway").gateway(platform, raw),
    "builds": lambda platform, raw: importlib.import_module("builds").builds(platform, raw),
    "sampling": lambda platform, raw: importlib.import_module("sampling").sampling(platform, raw),
}


BOUND_SECONDS = float(os.environ.get("SANDLOT_BENCH_BOUND", "900"))
"""What hangs must not keep the others from being measured."""


def said(error: BaseException) -> str:
    """Say what failed, without the groups around it and with what lies beneath it."""
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    words = f"{type(error).__name__}: {error}"
    cause = error.__cause__
    while cause is not None:
        words += f" (from {type(cause).__name__}: {cause})"
        cause = cause.__cause__
    return words[:500]


async def _bench(names: list[str]) -> dict[str, Run]:
    runs: dict[str, Run] = {}
    machine = f"{os.cpu_count()} CPUs, Linux {host.release()}, Python {host.python_version()}"
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory, start() as platform:
        async with raw_box(Path(directory), cache_dir()) as raw:
            for name in names:
                at, failed, rows = f"{datetime.now(UTC):%Y-%m-%d %H:%M}", "", list[Row]()
                try:
                    async with asyncio.timeout(BOUND_SECONDS):
                        rows = await BENCHMARKS[name](platform, raw)
                except Exception as error:  # noqa: BLE001 - said on the page, and the exit code
                    failed = said(error)
                    print(f"{name}: {failed}", flush=True)
                for row in rows:
                    ratio = "" if row.ratio is None else f"  {row.ratio:.2f} × {row.baseline_name}"
                    print(f"{row.name}: {row.value:.2f} {row.unit}{ratio}  {row.verdict}", flush=True)
                runs[name] = Run(at=at, machine=machine, rows=rows, failed=failed)
    return runs


def main() -> None:
    """Run the named benchmarks, or all, and have the page say what they said; `--only-say` leaves the page."""
    names = [name for name in sys.argv[1:] if name != "--only-say"]
    if unknown := [name for name in names if name not in BENCHMARKS]:
        sys.exit(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    runs = asyncio.run(_bench(names or list(BENCHMARKS)))
    if "--only-say" not in sys.argv:
        known = report.kept() | runs
        report.keep({name: known[name] for name in BENCHMARKS if name in known})
        print(f"wrote {report.PAGE.name}")
    rows = [row for run in runs.values() for row in run.rows]
    missed = [row.name for row in rows if row.verdict == "missed"]
    print(f"{len(rows)} rows, {len(missed)} missed" + "".join(f"\n  missed: {name}" for name in missed))
    if failed := [name for name, run in runs.items() if run.failed]:
        sys.exit(f"not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()
