"""Both ends of a measured HTTPS connection; each a process in its own namespace."""

import asyncio
import json
import ssl
import statistics
import sys
import time

NAME = "api.test"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 1024\r\n\r\n" + b"x" * 1024
REQUEST = f"GET /v1/things HTTP/1.1\r\nHost: {NAME}\r\nAccept: */*\r\n\r\n".encode()


async def serve(address: str, chain: str) -> None:
    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(ANSWER)
        except (asyncio.IncompleteReadError, OSError):
            writer.close()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    server = await asyncio.start_server(one, address, 443, ssl=context)
    print("listening", flush=True)
    await server.serve_forever()


async def connect(address: str, authorities: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = ssl.create_default_context(cafile=authorities)
    return await asyncio.open_connection(address, 443, ssl=context, server_hostname=NAME)


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
    began = time.perf_counter()
    writer.write(REQUEST)
    await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(1024)
    return time.perf_counter() - began


async def latency(address: str, authorities: str, count: str) -> float:
    """Milliseconds of one request after the other, p50."""
    reader, writer = await connect(address, authorities)
    return 1000 * statistics.median([await ask(reader, writer) for _ in range(int(count))])


async def rate(address: str, authorities: str, count: str, connections: str) -> float:
    """Requests a second over so many connections."""
    ends = [await connect(address, authorities) for _ in range(int(connections))]

    async def some(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(int(count) // len(ends)):
            await ask(reader, writer)

    began = time.perf_counter()
    await asyncio.gather(*(some(*end) for end in ends))
    return int(count) / (time.perf_counter() - began)


async def fresh(address: str, authorities: str, count: str) -> float:
    """Connections a second, each with a handshake and one request, one after the other."""
    began = time.perf_counter()
    for _ in range(int(count)):
        reader, writer = await connect(address, authorities)
        await ask(reader, writer)
        writer.transport.abort()
    return int(count) / (time.perf_counter() - began)


if __name__ == "__main__":
    work = {"serve": serve, "latency": latency, "rate": rate, "fresh": fresh}[sys.argv[1]]
    print(json.dumps(asyncio.run(work(*sys.argv[2:]))))
