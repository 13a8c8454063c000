"""The yardstick: sends prepared requests at a given concurrency over plain aiohttp, and does nothing else.

Each line of the file holds the requests of one run, in order; the first of them is its confirmation, the last its Job.
"""

import asyncio
import json
import ssl
import sys
import time
from pathlib import Path

import aiohttp


async def send_all(url: str, token: str, certificate: str, path: Path, concurrency: int) -> dict[str, object]:
    """Seconds for all runs, and from each run's confirmation to its Job."""
    waiting = iter([json.loads(line) for line in path.read_text().splitlines()])
    latencies: list[float] = []

    async def worker(session: aiohttp.ClientSession) -> None:
        for requests in waiting:
            began = time.monotonic()
            for method, target, content_type, body in requests:
                headers = {"Content-Type": content_type}
                async with session.request(method, target, data=json.dumps(body), headers=headers) as answer:
                    text = await answer.read()
                    assert answer.status < 300, text[:500]
            latencies.append(time.monotonic() - began)

    connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=certificate), limit=concurrency)
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(url, headers=headers, connector=connector) as session:
        before = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(worker(session))
        return {"seconds": time.monotonic() - before, "latencies": latencies}


if __name__ == "__main__":
    server, secret, authority, requests_file, many = sys.argv[1:]
    print(json.dumps(asyncio.run(send_all(server, secret, authority, Path(requests_file), int(many)))))
