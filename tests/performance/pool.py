"""The ready pool: a create from it against a raw exec, claims by themselves, bursts; a thousand sandboxes at once."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import aiohttp

from harness import Platform
from harness import platform as start
from raw_sandbox import RawBox
from report import Row, median, percentile
from sandlot import AsyncClient, AsyncSandbox

ROUNDS = 15
STANDING = 20
BURST = 100
THOUSAND = 1000
_FILL_SECONDS = 240.0
_THOUSAND_SECONDS = 540.0


class Calls(Protocol):
    """The public API, as the other benchmarks call it."""

    async def create(self, **fields: object) -> str: ...
    async def run(self, sandbox: str, *argv: str) -> dict[str, Any]: ...
    async def delete(self, sandbox: str) -> None: ...


Client = Callable[[Platform], Any]


def benchmarks(client: Client) -> dict[str, Callable[[Platform, RawBox], Awaitable[list[Row]]]]:
    """Return the benchmarks of this file over a client of the public API."""

    async def pool(_platform: Platform, raw: RawBox) -> list[Row]:
        with start(pool_size=str(STANDING), pool_max=str(STANDING)) as pooled:
            return await _first_output(pooled, client, raw)

    async def burst(_platform: Platform, _raw: RawBox) -> list[Row]:
        rows: list[Row] = []
        for count in (20, BURST):
            for size in (0, count):
                with start(pool_size=str(size), pool_max=str(size), pool_pause_seconds="0") as pooled:
                    rows.append(await _burst(pooled, client, count, size))
        return rows

    async def thousand(_platform: Platform, _raw: RawBox) -> list[Row]:
        with start(max_sandboxes=str(THOUSAND + 10)) as crowded:
            return await _thousand(crowded, client)

    return {"pool": pool, "burst": burst, "thousand": thousand}


async def _first_output(pooled: Platform, client: Client, raw: RawBox) -> list[Row]:
    ours: list[float] = []
    creates: list[float] = []
    theirs: list[float] = []
    by_client: list[float] = []
    sandbox = await raw.create()
    sandbox.exec(["node", "-v"])
    async with client(pooled) as api, AsyncClient(pooled.url, pooled.key) as python:
        for number in range(ROUNDS + 1):
            await _filled(pooled, STANDING)
            begun = time.perf_counter()
            made = await api.create()
            created = time.perf_counter()
            done = await api.run(made, "node", "-v")
            ended = time.perf_counter()
            assert done["stdout"].startswith("v"), done
            raw_begun = time.perf_counter()
            sandbox.exec(["node", "-v"])
            if number:
                theirs.append((time.perf_counter() - raw_begun) * 1000)
                ours.append((ended - begun) * 1000)
                creates.append((created - begun) * 1000)
            await api.delete(made)
            await _filled(pooled, STANDING)
            begun = time.perf_counter()
            async with await AsyncSandbox.create(client=python) as by_python:
                assert (await by_python.run(["node", "-v"])).stdout.startswith("v")
                if number:
                    by_client.append((time.perf_counter() - begun) * 1000)
    await raw.remove(sandbox)
    claims = [each * 1000 for each in _claim_seconds(pooled)]
    report = await _pool(pooled)
    return [
        Row(
            name="create → first output of `node -v`, warm pool, over HTTP",
            unit="ms",
            value=median(ours),
            baseline=median(theirs),
            baseline_name="`node -v` by control-socket exec in a running sandbox",
            limit=1.3,
            note=f"p50 of {ROUNDS}, in turn; p90 {percentile(ours, 90):.0f} ms against "
            f"{percentile(theirs, 90):.0f} ms; {report['misses']} misses",
        ),
        Row(
            name="the same through the Python client",
            unit="ms",
            value=median(by_client),
            baseline=median(theirs),
            baseline_name="`node -v` by control-socket exec in a running sandbox",
            limit=1.3,
            note=f"p90 {percentile(by_client, 90):.0f} ms",
        ),
        Row(
            name="create from a warm pool, over HTTP, p50",
            unit="ms",
            value=median(creates),
            note=f"p90 {percentile(creates, 90):.1f} ms",
        ),
        Row(
            name="the claim by itself, on the node, p50",
            unit="ms",
            value=median(claims),
            limit=10,
            note=f"p90 {percentile(claims, 90):.1f} ms, by the node's own log",
        ),
    ]


async def _burst(pooled: Platform, client: Client, count: int, size: int) -> Row:
    await _filled(pooled, size)
    samples: list[float] = []
    async with client(pooled) as api:

        async def one() -> str:
            begun = time.perf_counter()
            made = await api.create(wait_seconds=120)
            samples.append((time.perf_counter() - begun) * 1000)
            return made

        begun = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one()) for _ in range(count)]
        elapsed = time.perf_counter() - begun
        hits = (await _pool(pooled))["hits"]
        async with asyncio.TaskGroup() as group:
            for task in tasks:
                group.create_task(api.delete(task.result()))
    return Row(
        name=f"{count} creates at once, {size or 'none'} ready",
        unit="s",
        value=elapsed,
        limit=1.5 if size >= BURST else None,
        note=f"{hits} claimed; p50 {median(samples):.0f} ms, p99 {percentile(samples, 99):.0f} ms",
    )


async def _thousand(crowded: Platform, client: Client) -> list[Row]:
    """Bounded in time: what is there when it is up is what is reported."""
    before = _available_mib()
    line = asyncio.Semaphore(4)
    ids: list[str] = []
    async with client(crowded) as api:

        async def one() -> None:
            async with line:
                ids.append(await api.create(timeout_seconds=7200, wait_seconds=300))

        begun = time.perf_counter()
        try:
            async with asyncio.timeout(_THOUSAND_SECONDS), asyncio.TaskGroup() as group:
                for _ in range(THOUSAND):
                    group.create_task(one())
        except TimeoutError:
            pass
        rate = len(ids) / (time.perf_counter() - begun)
        each = (before - _available_mib()) / max(1, len(ids))
        begun = time.perf_counter()
        answers = [await _answers(api, made) for made in ids]
        round_trip = (time.perf_counter() - begun) / max(1, len(ids)) * 1000
        begun = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for made in ids:
                group.create_task(api.delete(made))
        deleted = time.perf_counter() - begun
    return [
        Row(
            name="idle sandboxes at once that all answer",
            unit="",
            value=sum(answers),
            limit=THOUSAND,
            more_is_better=True,
            note=f"{len(ids)} created at {rate:.1f}/s, {each:.1f} MiB each by MemAvailable, "
            f"`true` in {round_trip:.1f} ms each in turn, all deleted in {deleted:.1f} s",
        )
    ]


async def _answers(api: Calls, made: str) -> bool:
    try:
        return (await api.run(made, "true"))["exit_code"] == 0
    except (aiohttp.ClientError, RuntimeError):
        return False


async def _pool(pooled: Platform) -> dict[str, Any]:
    connector = aiohttp.UnixConnector(path=str(pooled.config.node_socket))
    async with aiohttp.ClientSession(connector=connector) as node, node.get("http://node/node/v1/report") as answer:
        return (await answer.json())["pool"]


async def _filled(pooled: Platform, count: int) -> None:
    async with asyncio.timeout(_FILL_SECONDS):
        while sum(each["ready"] for each in (await _pool(pooled))["ready"]) < count:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.2)


def _claim_seconds(pooled: Platform) -> list[float]:
    lines = (pooled.config.logs_dir / "node.log").read_text().splitlines()
    rows = [json.loads(line) for line in lines if '"sandbox running"' in line]
    return [row["seconds"] for row in rows]


def _available_mib() -> float:
    with open("/proc/meminfo") as lines:  # noqa: PTH123 - a line of a kernel file
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable:"))
