"""Policies: changed in the kernel and by the API with a thousand others there; creates with one and without."""

import asyncio
import subprocess
import time
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address
from typing import Any, Protocol

from harness import Platform
from harness import platform as start
from netpolicy.elements import BY_POLICY, Change, Element, policy_elements, source_element
from netpolicy.firewall import Firewall
from netpolicy.policy import Policy, parse_policy
from network_world import World
from raw_sandbox import RawBox
from report import Row, median, percentile

ROUNDS = 40
SLOTS = 1000
FIRST = 5000
"""Indexes of the others, beyond those of the platform's own."""
REGIONS = 50
CREATES = 12


class Calls(Protocol):
    """The public API, as the other benchmarks call it."""

    async def call(self, method: str, path: str, body: object = None) -> dict[str, Any]: ...
    async def create(self, **fields: object) -> str: ...
    async def delete(self, sandbox: str) -> None: ...


Client = Callable[[Platform], Any]


def benchmarks(client: Client) -> dict[str, Callable[[Platform, RawBox], Awaitable[list[Row]]]]:
    """Return the benchmarks of this file over a client of the public API."""

    async def egress(_platform: Platform, _raw: RawBox) -> list[Row]:
        with start() as crowded:
            in_kernel = await asyncio.to_thread(World.do, _router(crowded), _crowd)
            async with client(crowded) as api:
                return [*in_kernel, *await _updates(api), *await _creates(api)]

    return {"egress": egress}


def _router(platform: Platform) -> Any:
    return platform.config.run_dir / "runsc" / "netns" / "router"


def _policy(number: int, rules: int = REGIONS) -> Policy:
    """An allowlist of so many regions, each of another address."""
    first = int(IPv4Address("93.0.0.0")) + number * 4096
    return parse_policy(
        {"mode": "allowlist", "allow": [f"{IPv4Address(first + 4 * each)}:443" for each in range(rules)]}
    )


def _crowd() -> list[Row]:
    """Give a thousand slots that nobody has their elements, and change one of them again and again."""
    firewall = Firewall()
    for index in range(SLOTS):
        name = f"sbx{FIRST + index}"
        elements = policy_elements(FIRST + index, name, 1, _policy(index))
        firewall.apply(Change(add=(source_element(name, IPv4Address("10.231.200.1") + index), *elements)))
    name, index = f"sbx{FIRST + SLOTS}", FIRST + SLOTS
    ours: list[float] = []
    swept: list[float] = []
    before: tuple[Element, ...] = ()
    for number in range(ROUNDS):
        after = policy_elements(index, name, number, _policy(SLOTS + number % 2, 5))
        old = tuple(element for element in before if element.set_name in BY_POLICY)
        begun = time.perf_counter()
        firewall.apply(Change(remove=tuple(element for element in before if element not in old), add=after))
        done = time.perf_counter()
        firewall.apply(Change(remove=old))
        ours.append((done - begun) * 1000)
        swept.append((time.perf_counter() - done) * 1000)
        before = after
    theirs: list[float] = []
    for number in range(10):
        text = "".join(
            f"add element inet sandlot allow {{ 0x7fff0001 . tcp . 94.0.0.{each} . {number + 1} }}\n"
            for each in range(5)
        )
        begun = time.perf_counter()
        subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)
        theirs.append((time.perf_counter() - begun) * 1000)
    firewall.close()
    present = f"{SLOTS} slots with {REGIONS} regions each present"
    note = f"{present}; p95 {percentile(ours, 95):.2f} ms; the old one removed behind it in {median(swept):.1f} ms;"
    note += f" five elements added by nft {median(theirs):.1f} ms"
    return [Row(name="policy of 5 rules changed by netlink", unit="ms", value=median(ours), limit=2, note=note)]


async def _updates(api: Calls) -> list[Row]:
    sandbox = await api.create(egress={"mode": "open"})
    taken: list[float] = []
    for number in range(ROUNDS):
        policy = _policy(5000 + number, 5).to_json()
        begun = time.perf_counter()
        await api.call("PUT", f"/v1/sandboxes/{sandbox}/egress", policy)
        taken.append((time.perf_counter() - begun) * 1000)
    await api.delete(sandbox)
    note = f"{SLOTS} slots with {REGIONS} regions each present; p95 {percentile(taken, 95):.1f} ms"
    return [Row(name="policy of 5 rules changed by the API", unit="ms", value=median(taken), limit=10, note=note)]


async def _creates(api: Calls) -> list[Row]:
    """Cold creates of both kinds in turn, so that what else the machine does meets both."""
    taken: dict[bool, list[float]] = {True: [], False: []}
    for number in range(2 * CREATES + 2):
        with_policy = number % 2 == 0
        policy = _policy(6000, REGIONS).to_json() if with_policy else {"mode": "open"}
        begun = time.perf_counter()
        sandbox = await api.create(egress=policy, resources={"memory_mib": 256})
        ended = time.perf_counter()
        if number > 1:
            taken[with_policy].append((ended - begun) * 1000)
        await api.delete(sandbox)
    return [
        Row(
            name=f"cold create with a policy of {REGIONS} rules",
            unit="ms",
            value=median(taken[True]),
            baseline=median(taken[False]),
            baseline_name="mode open",
            limit=1.05,
        )
    ]
