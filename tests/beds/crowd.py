"""Thousands of runs in one namespace, an operator process beside them, and a watch that notes when each run comes how far. It judges nothing."""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from control_plane import AUDITED, ApiServer
from mark_crds import names
from rest import Rest

Body = dict[str, Any]
CLAIM = "mark-workspace"
CONCURRENCY = 32
RUNS = f"/apis/{names.API_VERSION}"


class OperatorUnderTest:
    """One operator process that calls the API server as the user whose calls are counted."""

    def __init__(self, server: ApiServer, folder: Path, url: str | None = None, **settings: Any) -> None:
        self._server, self._url = server, url
        self._log, self._settings = folder / "operator.log", folder / "operator.json"
        self._port = _free_port()
        # Nothing is served to Pods here, and no node is there to offer a GPU.
        given = {"healthPort": self._port, "progressPort": 0, "requireGpuNodes": False, **settings}
        # A busy machine must not cost the operator its Lease.
        given["timings"] = {"leaseSeconds": 120, "renewSeconds": 10, **settings.get("timings", {})}
        self._settings.write_text(json.dumps({"operatorNamespace": "default", **given}))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {**os.environ, "KUBECONFIG": str(self._server.kubeconfig(AUDITED, self._url))}
        profile = os.environ.get("MARK_PROFILE")
        watched = ["-m", "cProfile", "-o", profile] if profile else []
        command = [sys.executable, *watched, "-m", "mark_operator", "--settings", str(self._settings)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, env=environment, stderr=log)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
            self._process = None

    @property
    def log(self) -> str:
        return self._log.read_text()

    def megabytes(self, field: str = "VmRSS") -> float:
        """Resident memory now, or at its highest with `VmHWM`."""
        assert self._process is not None
        found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{self._process.pid}/status").read_text())
        assert found is not None
        return int(found[1]) / 1024

    def cpu_seconds(self) -> float:
        """Processor time that the process has used so far."""
        assert self._process is not None
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def metrics(self) -> dict[str, float]:
        """What /metrics says, by name and labels; empty while nobody answers."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            return {}
        writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = (await reader.read()).decode()
        writer.close()
        return {name: float(value) for name, value in re.findall(r"^(mark_\S+) (\S+)$", text, re.MULTILINE)}

    async def until_it_leads(self) -> None:
        """Wait until it has started and leads."""
        while (await self.metrics()).get("mark_operator_leading") != 1:
            assert self._process is not None and self._process.poll() is None, self.log[-3000:]
            await asyncio.sleep(0.1)


class LongestLag:
    """The largest lag of the operator's event loop that any of its ticks reported."""

    def __init__(self, operator: OperatorUnderTest) -> None:
        self._operator = operator
        self.seconds = 0.0

    async def run(self) -> None:
        while True:
            self.seconds = max(self.seconds, (await self._operator.metrics()).get("mark_operator_loop_lag_seconds", 0))
            await asyncio.sleep(0.5)


class Crowd:
    """Runs of one spec in one namespace, and when each of them was first seen in each state."""

    def __init__(self, rest: Rest, namespace: str, count: int, prefix: str = "run", **spec: Any) -> None:
        self._rest, self.namespace, self._spec = rest, namespace, spec
        self.runs = f"{RUNS}/namespaces/{namespace}/trainingruns"
        self.jobs = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        self.names = [f"{prefix}-{number:05d}" for number in range(count)]
        self.confirmed: dict[str, float] = {}
        self.first_job: dict[str, float] = {}
        self.in_state: dict[str, dict[str, float]] = defaultdict(dict)

    def manifest(self, name: str) -> Body:
        work = {
            "workspace": {"claimName": CLAIM},
            "baseModel": {"path": "base/tiny-llama"},
            "stages": ["dataPrep"],
            "lora": {"epochs": 1},
            "resources": {"cpu": "1", "memory": "1Gi"},
        }
        spec = {**work, **self._spec}
        return {"apiVersion": names.API_VERSION, "kind": "TrainingRun", "metadata": {"name": name}, "spec": spec}

    async def create(self) -> None:
        await self.for_each(lambda name: self._rest.post(self.runs, self.manifest(name)))

    async def confirm(self) -> None:
        await self.for_each(self._confirm)

    async def _confirm(self, name: str) -> None:
        self.confirmed[name] = time.monotonic()
        await self._rest.patch(f"{self.runs}/{name}", {"spec": {"dryRun": False, "confirm": True}})

    async def for_each(self, work: Callable[[str], Awaitable[Any]]) -> None:
        await each(self.names, work)

    async def watch(self) -> None:
        """Note what happens, until cancelled."""
        await asyncio.gather(self._watch_runs(), self._watch_jobs())

    async def _watch_runs(self) -> None:
        while True:
            async for kind, run in self._rest.watch(self.runs):
                if kind != "DELETED":
                    state = run.get("status", {}).get("state", "")
                    self.in_state[state].setdefault(run["metadata"]["name"], time.monotonic())

    async def _watch_jobs(self) -> None:
        while True:
            async for _, job in self._rest.watch(self.jobs):
                self.first_job.setdefault(job["metadata"]["labels"][names.RUN_LABEL], time.monotonic())

    async def until_all(
        self, seen: dict[str, float], what: str, seconds: float, chosen: Sequence[str] | None = None
    ) -> float:
        """Wait until every run, or every chosen one, is among those seen; the time of the last one."""
        end, awaited = time.monotonic() + seconds, set(chosen or self.names)
        while not seen.keys() >= awaited:
            if time.monotonic() > end:
                missing = sorted(awaited - seen.keys())
                run = await self._rest.get(f"{self.runs}/{missing[0]}")
                raise AssertionError(f"{len(missing)} runs never {what}; {missing[0]} says {run.get('status')}")
            await asyncio.sleep(0.05)
        return max(seen[name] for name in awaited)


@asynccontextmanager
async def beside(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Endless works beside the block; one that broke breaks the block at once."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in works]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


async def each(items: Iterable[Any], work: Callable[[Any], Awaitable[Any]], concurrency: int = CONCURRENCY) -> None:
    """Do the work for every item, so many at a time."""
    waiting = iter(list(items))

    async def worker() -> None:
        for item in waiting:
            await work(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(worker())


async def make_claim(rest: Rest, namespace: str) -> None:
    """A bound claim, as the runs ask for."""
    claims = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    await rest.post(
        claims, {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": CLAIM}, "spec": spec}
    )
    status = {"phase": "Bound", "accessModes": ["ReadWriteMany"], "capacity": {"storage": "1Gi"}}
    await rest.patch(f"{claims}/{CLAIM}/status", {"status": status})


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
