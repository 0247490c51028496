"""What no sandbox may reach in any mode, and a program that tries it from inside one."""

import json
import textwrap
from collections.abc import Iterable
from dataclasses import asdict, dataclass

METADATA = "169.254.169.254"

# One address of each kind that is private, special or somebody's infrastructure; all are swept on several ports.
_SPECIAL = (
    METADATA,
    "169.254.0.1",
    "0.0.0.1",
    "10.0.0.1",
    "10.255.255.254",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.53",
    "172.16.0.1",
    "172.17.0.1",
    "172.31.255.254",
    "168.63.129.16",
    "192.0.0.192",
    "192.0.2.1",
    "192.168.0.1",
    "192.168.255.254",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
)
_SPECIAL_IPV6 = ("fe80::1", "fd00:ec2::254", "::ffff:169.254.169.254", "2606:4700:4700::1111", "ff02::1")
_PORTS = (22, 53, 80, 8080)


@dataclass(frozen=True, slots=True)
class Target:
    """Somewhere to knock."""

    address: str
    port: int
    protocol: str = "tcp"


def forbidden_targets(own: Iterable[str], *, public: str, ports: Iterable[int] = _PORTS) -> list[Target]:
    """Return what must never answer: `own` are addresses of the node, the router and other sandboxes.

    `public` is an address that open sandboxes reach, but not by mail.
    """
    addresses = [*own, *_SPECIAL, *_SPECIAL_IPV6]
    knocks = [Target(address, port, protocol) for address in addresses for port in ports for protocol in ("tcp", "udp")]
    return [*knocks, Target(public, 25), *(Target(address, 25) for address in own)]


PROBE = textwrap.dedent(
    """
    import asyncio, json, socket, sys

    class Udp(asyncio.DatagramProtocol):
        def __init__(self):
            self.answered = asyncio.get_running_loop().create_future()
        def connection_made(self, transport):
            transport.sendto(b"knock")
        def datagram_received(self, data, address):
            self.answered.done() or self.answered.set_result(True)
        def error_received(self, error):
            self.answered.done() or self.answered.set_result(False)

    async def knock(target):
        family = socket.AF_INET6 if ":" in target["address"] else socket.AF_INET
        where = (target["address"], target["port"])
        try:
            if target["protocol"] == "tcp":
                _, writer = await asyncio.open_connection(*where, family=family)
                writer.close()
                return True
            loop = asyncio.get_running_loop()
            transport, protocol = await loop.create_datagram_endpoint(Udp, remote_addr=where, family=family)
            try:
                return await protocol.answered
            finally:
                transport.close()
        except OSError:
            return False

    async def main():
        targets, patience = json.loads(sys.argv[1]), float(sys.argv[2])
        limit = asyncio.Semaphore(32)
        async def bounded(target):
            async with limit:
                try:
                    return await asyncio.wait_for(knock(target), patience)
                except asyncio.TimeoutError:
                    return False
        answers = await asyncio.gather(*map(bounded, targets))
        print(json.dumps([target for target, answered in zip(targets, answers) if answered]))

    asyncio.run(main())
    """
)


def probe_argv(targets: Iterable[Target], *, python: str = "python3", patience_seconds: float = 1) -> list[str]:
    """Return a command that prints, as JSON, those targets that answered; needs nothing but Python where it runs."""
    listed = json.dumps([asdict(target) for target in targets])
    return [python, "-I", "-c", PROBE, listed, str(patience_seconds)]


def answered(output: str) -> list[Target]:
    return [Target(**target) for target in json.loads(output)]
