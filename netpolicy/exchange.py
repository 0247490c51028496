"""HTTP/1.1 between a sandbox and a server, one request after the other: read strictly, said anew, bodies as they come.

What a server is sent was written here, so no two parsers see two requests where there is one. Nothing is buffered but
heads; whoever is slow makes the other side wait.
"""

import asyncio
from typing import Final

import h11

from netpolicy.rewrite import Fields, RefusedError, check_head, with_placed, without
from netpolicy.sniff import Head, NoNameError, read_head
from netpolicy.tls_end import TlsEnd
from netpolicy.verified import Server

_IDLE_SECONDS: Final = 120.0
"""How long a connection may say nothing between two requests."""
_HEAD_SECONDS: Final = 10.0
"""How long a head may take from its first byte on."""
_PARTING_SECONDS: Final = 2.0
"""How long somebody who was refused may go on sending: else the refusal would be lost."""
_CHUNK_BYTES: Final = 64 * 1024
_MOST_ANSWER_HEAD: Final = 64 * 1024
_SWITCHING: Final = 101


class Request:
    """One whose head was read and may be passed on."""

    def __init__(self, head: Head, data: bytes) -> None:
        self.inbound = h11.Connection(h11.SERVER, max_incomplete_event_size=_CHUNK_BYTES)
        try:
            self.inbound.receive_data(data)
            event = self.inbound.next_event()
        except h11.RemoteProtocolError:
            event = None
        if not isinstance(event, h11.Request):
            raise RefusedError(400, "this is no request", "request_refused")
        self.head = head
        self.event = event


async def next_request(end: TlsEnd, kept: bytes, host: str) -> Request | None:
    """Read the head of the next request, of which `kept` has come already. None: there is none. RefusedError."""
    data = kept
    try:
        if not data:
            async with asyncio.timeout(_IDLE_SECONDS):
                data = await end.read()
        async with asyncio.timeout(_HEAD_SECONDS):
            while data:
                head = read_head(data)
                if head is not None:
                    check_head(head, host)
                    return Request(head, data)
                more = await end.read()
                if not more:
                    return None
                data += more
    except TimeoutError:
        if data:
            raise RefusedError(408, "the head took too long") from None
    except NoNameError as error:
        reason = error.reason if error.reason in {"no_name", "name_mismatch"} else "request_refused"
        status = 421 if error.reason == "name_mismatch" else 400
        raise RefusedError(status, f"this request cannot be read in one way only: {error.reason}", reason) from None
    return None


class Exchange:
    """One request on its way to a server, and the answer on its way back."""

    def __init__(self, end: TlsEnd, server: Server, request: Request, put: Fields) -> None:
        self._end = end
        self._server = server
        self._inbound = request.inbound
        self._request = request.event
        self._put = put
        self._outbound = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MOST_ANSWER_HEAD)
        self._begun = False
        self._garbled = False
        self._switched = False

    async def carry(self) -> bytes | None:
        """Pass both on; returns what has come of the next request. None: the connection is over.

        RefusedError while nothing of the answer was passed on; ConnectionError later.
        """
        asked = self._request
        fields = with_placed(asked.headers.raw_items(), self._put)
        self._send(h11.Request(method=asked.method, target=asked.target, headers=fields))
        failure: Exception | None = None
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(self._pass_body())
            try:
                await self._pass_answer()
            except (RefusedError, ConnectionError) as error:
                failure = error
            asking.cancel()
        if failure is not None:
            raise failure
        if self._switched:
            await self._pass_both_ways()
            return None
        if self._outbound.their_state is not h11.DONE or self._outbound.our_state is not h11.DONE:
            self._server.abort()
        if self._inbound.our_state is not h11.DONE or self._inbound.their_state is not h11.DONE:
            return None
        return bytes(self._inbound.trailing_data[0])

    async def _pass_body(self) -> None:
        try:
            await self._pass_body_on()
        except h11.RemoteProtocolError:
            self._garbled = True
            self._server.abort()  # which the one who waits for the answer learns of
        except OSError:
            pass  # the server takes no more; it may have answered all the same

    async def _pass_body_on(self) -> None:
        while True:
            event = self._inbound.next_event()
            if event is h11.NEED_DATA:
                self._inbound.receive_data(await self._end.read())
            elif isinstance(event, h11.Data):
                self._send(event)
                await self._server.writer.drain()
            elif isinstance(event, h11.EndOfMessage):
                self._send(h11.EndOfMessage(headers=without(event.headers.raw_items(), self._put)))
                await self._server.writer.drain()
                return
            else:
                return

    def _send(self, event: h11.Request | h11.Data | h11.EndOfMessage) -> None:
        data = self._outbound.send(event)
        if data:
            self._server.writer.write(data)

    async def _pass_answer(self) -> None:
        try:
            while not await self._pass_event():
                pass
        except (h11.RemoteProtocolError, h11.LocalProtocolError, OSError) as error:
            if self._begun:
                raise ConnectionError("the answer broke off") from None
            if self._garbled:
                raise RefusedError(400, "the body of the request cannot be read", "request_refused") from None
            if isinstance(error, OSError):
                raise RefusedError(502, "the server ended the connection without an answer") from None
            raise RefusedError(502, "the server's answer cannot be read") from None

    async def _pass_event(self) -> bool:
        """Pass on the next piece of the answer; tells whether it was the last."""
        event = self._outbound.next_event()
        if event is h11.NEED_DATA:
            self._outbound.receive_data(await self._server.reader.read(_CHUNK_BYTES))
            return False
        if not isinstance(event, h11.InformationalResponse | h11.Response | h11.Data | h11.EndOfMessage):
            raise ConnectionError("no answer")
        if isinstance(event, h11.InformationalResponse | h11.Response):
            self._begun = True
            self._switched = event.status_code == _SWITCHING
        data = self._inbound.send(event)
        if data:
            await self._end.write(data)
        return self._switched or isinstance(event, h11.EndOfMessage)

    async def _pass_both_ways(self) -> None:
        """Carry whatever it is from now on, until one side ends."""
        self._server.writer.write(bytes(self._inbound.trailing_data[0]))
        await self._end.write(bytes(self._outbound.trailing_data[0]))
        async with asyncio.TaskGroup() as group:
            there, back = group.create_task(self._pass_there()), group.create_task(self._pass_back())
            await asyncio.wait([there, back], return_when=asyncio.FIRST_COMPLETED)
            there.cancel()
            back.cancel()

    async def _pass_there(self) -> None:
        try:
            while data := await self._end.read():
                self._server.writer.write(data)
                await self._server.writer.drain()
        except OSError:
            return

    async def _pass_back(self) -> None:
        try:
            while data := await self._server.reader.read(_CHUNK_BYTES):
                await self._end.write(data)
        except OSError:
            return


async def refuse(end: TlsEnd, refused: RefusedError) -> None:
    """Tell the sandbox why; nothing of the connection is left after that."""
    body = f"sandlot: {refused.text}\n".encode()
    status = {
        400: "Bad Request",
        405: "Method Not Allowed",
        408: "Request Timeout",
        421: "Misdirected Request",
        501: "Not Implemented",
    }
    head = (
        f"HTTP/1.1 {refused.status} {status.get(refused.status, 'Bad Gateway')}\r\nContent-Type: text/plain\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    await end.write(head.encode() + body)
    end.finish()
    try:
        async with asyncio.timeout(_PARTING_SECONDS):
            while await end.read():
                pass
    except TimeoutError:
        pass
