"""Job types of one's own: run them with `pgqueue dispatcher --app tasks:registry` in this directory."""

from __future__ import annotations

import asyncio
from typing import Any

from pgqueue import Job, JobContext, Registry

registry = Registry()


@registry.executor("resize", max_concurrency=4, timeout=30.0)
async def resize(job: Job, context: JobContext) -> dict[str, Any]:
    """An `async def` runs on the event loop: it must not block it. What it returns is the job's result."""
    await asyncio.sleep(0)
    context.logger.info("resized %s", job.payload["image"])
    return {"image": job.payload["image"], "width": 200}


@registry.executor("checksum")
def checksum(job: Job, context: JobContext) -> int:
    """A plain `def` runs in a thread and may block; it looks now and then whether it should stop."""
    total = 0
    for byte in job.payload["text"].encode():
        if context.cancelled.is_set():
            break
        total = (total * 31 + byte) % 2**32
    return total
