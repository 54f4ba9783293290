"""Hundreds of HTTP clients in bare asyncio, which cost less than the server they load."""

import asyncio
import json
import time
from typing import NamedTuple

_CHUNKS = 60  # of a slow body


class Answer(NamedTuple):
    """An HTTP response.

    status   0 if the connection was closed without one
    seconds  from the first byte sent to the last one received
    """

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float


def form(data: bytes, name: str = "a.png", **options: str) -> tuple[bytes, bytes]:
    """Return head and body of a POST to /enhance."""
    parts = [
        f'Content-Disposition: form-data; name="{key}"\r\n\r\n{text}'.encode()
        for key, text in options.items()
    ]
    parts.append(f'Content-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode() + data)
    body = b"".join(b"--x\r\n" + part + b"\r\n" for part in parts) + b"--x--\r\n"
    head = (
        "POST /enhance HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode(), body


def get(path: str) -> tuple[bytes, bytes]:
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode(), b""


async def ask(port: int, request: tuple[bytes, bytes], *, slowly: float = 0) -> Answer:
    """Send a request, its body in chunks over `slowly` seconds, and return the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head, body = request
    start = time.perf_counter()
    writer.write(head if slowly else head + body)
    sending = asyncio.create_task(_drip(writer, body, slowly)) if slowly else None
    try:
        received = await reader.read()
    except ConnectionError:
        received = b""
    seconds = time.perf_counter() - start
    if sending:
        sending.cancel()
    writer.close()
    lines, _, rest = received.partition(b"\r\n\r\n")
    first, *more = lines.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in more)}
    return Answer(int(first.split()[1]) if first else 0, headers, rest, seconds)


async def _drip(writer: asyncio.StreamWriter, body: bytes, seconds: float) -> None:
    try:
        step = -(-len(body) // _CHUNKS)
        for start in range(0, len(body), step):
            writer.write(body[start : start + step])
            await writer.drain()
            await asyncio.sleep(seconds / _CHUNKS)
    except ConnectionError:
        return


async def ended(port: int, job: str) -> dict:
    """Wait for a job to end and return its status."""
    while True:
        status = json.loads((await ask(port, get(f"/status/{job}"))).body)
        if status["status"] not in ("queued", "processing"):
            return status
        await asyncio.sleep(0.1)
