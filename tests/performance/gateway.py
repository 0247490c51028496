"""The gateway: http tunnels against a connection to the same server, and calls at the node against calls by the api."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

from harness import Platform
from raw_sandbox import RawBox
from report import Row, median, percentile

SECONDS = 4.0
IN_TURN = 300
AT_ONCE = 8
PORT = 8000
BIG_MIB = 64
SERVER = """
import asyncio
BODY = b"x" * 65536
async def serve(reader, writer):
    try:
        while True:
            head = await reader.readuntil(b"\\r\\n\\r\\n")
            if head.startswith(b"GET /big"):
                writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % (64 << 20))
                for _ in range(1024):
                    writer.write(BODY); await writer.drain()
            else:
                writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()
async def main():
    async with await asyncio.start_server(serve, "0.0.0.0", 8000): await asyncio.Event().wait()
asyncio.run(main())
"""

Once = Callable[[], Awaitable[None]]


async def _in_turn(*ways: Once) -> list[list[float]]:
    """Call each in turn with the others, so that all meet the same noise; milliseconds."""
    samples: list[list[float]] = [[] for _ in ways]
    for number in range(IN_TURN + 20):
        for way, found in zip(ways, samples, strict=True):
            begun = time.perf_counter()
            await way()
            if number >= 20:
                found.append((time.perf_counter() - begun) * 1000)
    return samples


async def _rate(way: Once) -> float:
    """Call from several at once for some seconds; calls a second."""
    done = 0
    end = time.perf_counter() + SECONDS

    async def call() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await way()
            done += 1

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(call())
    return done / (time.perf_counter() - begun)


def _getter(http: aiohttp.ClientSession, url: str, headers: dict[str, str]) -> Once:
    async def get() -> None:
        async with http.get(url, headers=headers) as answer:
            answer.raise_for_status()
            async for _ in answer.content.iter_any():
                pass

    return get


async def _prepared(platform: Platform, http: aiohttp.ClientSession, own: dict[str, str]) -> tuple[dict[str, Any], str]:
    """Return a sandbox that serves, and the address of a raw tunnel to it."""

    async def api(method: str, path: str, **options: Any) -> Any:
        async with http.request(method, platform.url + path, headers=own, **options) as answer:
            answer.raise_for_status()
            return await answer.json()

    sandbox = await api("POST", "/v1/sandboxes", json={"resources": {"memory_mib": 512}})
    base = f"/v1/sandboxes/{sandbox['id']}"
    await api("POST", f"{base}/processes", json={"argv": ["python3", "-c", SERVER]})
    await api("GET", f"{base}/ports?port={PORT}&wait_seconds=60")
    await api("POST", f"{base}/tunnels", json={"port": PORT, "kind": "http", "visibility": "public"})
    raw = await api("POST", f"{base}/tunnels", json={"port": PORT, "kind": "tcp"})
    return sandbox, f"http://{raw['host']}:{raw['public_port']}"


async def gateway(platform: Platform, _raw: RawBox) -> list[Row]:
    """A small answer again and again, a big one, and the list of processes."""
    own = {"Authorization": f"Bearer {platform.key}"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as http:
        sandbox, direct_url = await _prepared(platform, http, own)
        named = {"Sandlot-Sandbox-Id": sandbox["id"], "Sandlot-Sandbox-Port": str(PORT)}
        through = _getter(http, platform.gateway_url + "/", named)
        direct = _getter(http, direct_url + "/", {})
        fresh = _getter(http, direct_url + "/", {"Connection": "close"})
        latency = await _in_turn(through, direct, fresh)
        rates = [await _rate(through), await _rate(direct), await _rate(fresh)]
        big = [await _in_turn_big(http, url, headers) for url, headers in (
            (platform.gateway_url, named), (direct_url, {}),
        )]  # fmt: skip
        path = f"/v1/sandboxes/{sandbox['id']}/processes"
        token = {"Authorization": f"Bearer {sandbox['access']['token']}"}
        at_node, by_api = _getter(http, platform.gateway_url + path, token), _getter(http, platform.url + path, own)
        calls = await _in_turn(at_node, by_api)
        call_rates = [await _rate(at_node), await _rate(by_api)]
        async with http.delete(f"{platform.url}/v1/sandboxes/{sandbox['id']}?grace_seconds=0", headers=own) as answer:
            await answer.read()
    return _rows(latency, rates, big, calls, call_rates)


async def _in_turn_big(http: aiohttp.ClientSession, url: str, headers: dict[str, str]) -> float:
    """Return MiB a second of a big answer, the best of three."""
    get = _getter(http, url + "/big", headers)
    best = 0.0
    for _ in range(3):
        begun = time.perf_counter()
        await get()
        best = max(best, BIG_MIB / (time.perf_counter() - begun))
    return best


def _rows(
    latency: list[list[float]], rates: list[float], big: list[float], calls: list[list[float]], call_rates: list[float]
) -> list[Row]:
    through, direct, fresh = latency
    one_each = "a raw tunnel, a connection each"
    kept = "a raw tunnel, one connection kept"
    return [
        Row(
            name="a small request through the gateway, p50",
            unit="ms",
            value=median(through),
            baseline=median(fresh),
            baseline_name=one_each,
            note=f"{IN_TURN} in turn; the gateway keeps a stream for each client",
        ),
        Row(name="the same, added to a kept connection, p50", unit="ms", value=median(through) - median(direct)),
        Row(
            name="the same, p99",
            unit="ms",
            value=percentile(through, 99),
            baseline=percentile(fresh, 99),
            baseline_name=one_each,
        ),
        Row(
            name=f"small requests a second through the gateway, {AT_ONCE} at once",
            unit="/s",
            value=rates[0],
            baseline=rates[2],
            baseline_name=one_each,
            more_is_better=True,
        ),
        Row(
            name="the same, against connections that are kept",
            unit="/s",
            value=rates[0],
            baseline=rates[1],
            baseline_name=kept,
            more_is_better=True,
        ),
        Row(
            name=f"an answer of {BIG_MIB} MiB through the gateway",
            unit="MiB/s",
            value=big[0],
            baseline=big[1],
            baseline_name="a raw tunnel",
            more_is_better=True,
        ),
        Row(
            name="a call at the node, p50",
            unit="ms",
            value=median(calls[0]),
            baseline=median(calls[1]),
            baseline_name="by the api",
            note="GET …/processes",
        ),
        Row(
            name=f"calls a second at the node, {AT_ONCE} at once",
            unit="/s",
            value=call_rates[0],
            baseline=call_rates[1],
            baseline_name="by the api",
            more_is_better=True,
        ),
    ]
