"""What a gateway says of where it is reached."""

import socket
from pathlib import Path

import aiohttp
import pytest

from tunnels.gateway.config import GatewayConfig
from tunnels.gateway.program import serving


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])  # noqa: S104 - that is what is tried
async def test_a_gateway_tells_an_address_that_leads_to_it(tmp_path: Path, host: str) -> None:
    async with serving(GatewayConfig(run_dir=tmp_path, gateway_host=host, gateway_port=0)) as url:
        told = url.removeprefix("http://").rpartition(":")[0]
        assert told != "0.0.0.0"  # noqa: S104 - nobody reaches that
        socket.inet_aton(told)
        async with aiohttp.ClientSession() as session, session.get(f"{url}/healthz") as answer:
            assert answer.status == 200
