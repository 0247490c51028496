"""A real browser without a screen, in a root of its own, spoken to by the Chrome DevTools protocol."""

import asyncio
import itertools
import json
import re
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from infra.setup.browser_for_tests import BROWSER

PATIENCE_SECONDS = 90
_LISTENING = re.compile(rb"DevTools listening on (ws://\S+)")
# Mounts of its own, that end with it: the root in the cache stays what set-up made.
_START = """
mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" && mount -t tmpfs -o mode=1777 tmpfs "$1/tmp" &&
exec chroot "$@"
"""
_OPTIONS = (
    "--no-sandbox",  # it runs as root, and visits nothing but what these tests serve
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--user-data-dir=/tmp/profile",
    "--remote-debugging-port=0",
    "--window-size=1200,900",
)


class Page:
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._session: str | None = None
        self.events: list[tuple[str, dict[str, Any]]] = []

    async def read(self) -> None:
        """Take in what the browser says, until it ends."""
        async for message in self._socket:
            said = json.loads(message.data)
            if "id" in said:
                self._waiting.pop(said["id"]).set_result(said)
            else:
                self.events.append((said["method"], said["params"]))

    async def open(self) -> None:
        """Make the tab."""
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            await self.call(f"{domain}.enable")
        await self.call("Emulation.setFocusEmulationEnabled", enabled=True)

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        asked: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session is not None:
            asked["sessionId"] = self._session
        future = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        await self._socket.send_json(asked)
        async with asyncio.timeout(PATIENCE_SECONDS):
            said: dict[str, Any] = await future
        assert "error" not in said, f"{method}: {said['error']}"
        return said["result"]

    async def visit(self, url: str) -> None:
        answer = await self.call("Page.navigate", url=url)
        assert "errorText" not in answer, f"{url}: {answer['errorText']}"

    async def value(self, expression: str) -> Any:
        """Return what an expression is in the page; None where it cannot be said, as between two pages."""
        said = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return None if "exceptionDetails" in said else said["result"].get("value")

    async def until(self, expression: str) -> Any:
        """Wait until an expression is true in the page."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not (value := await self.value(f"!!({expression})")):  # noqa: ASYNC110 - the page tells nobody
                    await asyncio.sleep(0.1)
        except TimeoutError:
            text = await self.value("location.href + '\\n' + document.body.innerText.slice(0, 2000)")
            raise AssertionError(f"never true: {expression}\n{text}\n{self.complaints()}") from None
        return value

    async def click(self, selector: str) -> None:
        where = await self.value(
            f"(e => e && (r => ({{x: r.x + r.width / 2, y: r.y + r.height / 2}}))(e.getBoundingClientRect()))"
            f"(document.querySelector({json.dumps(selector)}))"
        )
        assert where, f"there is no {selector}"
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **where)

    async def type(self, text: str) -> None:
        await self.call("Input.insertText", text=text)

    async def shift_enter(self) -> None:
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "modifiers": 8}
        await self.call("Input.dispatchKeyEvent", type="keyDown", text="\r", **key)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **key)

    def sockets(self) -> list[str]:
        """Return the addresses of WebSockets that were opened, in order."""
        made = {
            params["requestId"]: params["url"] for name, params in self.events if name == "Network.webSocketCreated"
        }
        opened = [
            params["requestId"]
            for name, params in self.events
            if name == "Network.webSocketHandshakeResponseReceived" and params["response"]["status"] == 101
        ]
        return [made[number] for number in opened]

    async def until_socket(self, part: str) -> None:
        """Wait until a WebSocket is open whose address has this in it."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not any(part in url for url in self.sockets()):  # noqa: ASYNC110 - the same
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"no WebSocket to {part}: {self.sockets()} {self.complaints()}") from None

    def complaints(self) -> list[str]:
        """Return what went wrong: answers with an error, and what the console says of it."""
        answers = [
            f"{params['response']['status']} {params['response']['url']}"
            for name, params in self.events
            if name == "Network.responseReceived" and params["response"]["status"] >= 400
        ]
        console = [params["entry"]["text"] for name, params in self.events if name == "Log.entryAdded"]
        return answers + console


@asynccontextmanager
async def browsing(root: Path) -> AsyncGenerator[Page]:
    """Start the browser, with nothing in it that an earlier one left."""
    inside = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", _START, "sh", str(root)]
    process = await asyncio.create_subprocess_exec(
        *inside, BROWSER, *_OPTIONS, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        address = await _address(process)
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(address, max_msg_size=64 << 20) as socket,
            asyncio.TaskGroup() as group,
        ):
            page = Page(socket)
            reading = [group.create_task(page.read())]
            assert process.stderr is not None
            reading.append(group.create_task(_drain(process.stderr)))
            await page.open()
            yield page
            for task in reading:
                task.cancel()
    finally:
        process.kill()
        await process.wait()


async def _address(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    said = b""
    async with asyncio.timeout(PATIENCE_SECONDS):
        async for line in process.stderr:
            said += line
            found = _LISTENING.search(line)
            if found is not None:
                return found[1].decode()
    raise AssertionError(f"the browser does not start: {said.decode()}")


async def _drain(stream: asyncio.StreamReader) -> None:
    while await stream.read(65536):
        pass
