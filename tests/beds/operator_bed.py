"""The operator as a process of its own behind the fault proxy, told one workload, and what is left in the cluster afterwards."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from control_plane import ApiServer
from fault_proxy import Fault, FaultProxy, Ledger, WatchTrouble
from pretend_kubelet import PretendKubelet, Script
from rest import Refused, Rest
from workloads import CLAIM, Person, Workload

Body = dict[str, Any]
QUICK = {"leaseSeconds": 2, "renewSeconds": 1, "relistSeconds": 5, "checkSeconds": 2, "activeSeconds": 2, "firstRetrySeconds": 1, "longestRetrySeconds": 2}
# For a crowd of runs: every answer comes from the change itself, and a busy machine does not cost the operator its lease.
UNHURRIED = {**QUICK, "leaseSeconds": 30, "renewSeconds": 5, "checkSeconds": 60, "relistSeconds": 60}
# The same, and a killed operator's successor need not wait long.
REPLACED_SOON = {**UNHURRIED, "leaseSeconds": 6, "renewSeconds": 1}
# Children that a run may own; Pods belong to their Jobs.
CHILDREN = {"jobs": "/apis/batch/v1", "configmaps": "/api/v1", "services": "/api/v1", "pods": "/api/v1"}


class OperatorProcess:
    """`python -m mark_operator` for one namespace, started again whenever it ends, as a Deployment would."""

    def __init__(self, server: ApiServer, namespace: str, log: Path, **settings: Any) -> None:
        self._server, self._namespace, self._log, self._changed = server, namespace, log, settings
        self._process: asyncio.subprocess.Process | None = None
        self.starts = 0

    async def run(self, url: str) -> None:
        kubeconfig = str(self._server.kubeconfig(url=url))
        with self._log.open("ab") as log:
            while True:
                self.starts += 1
                environment = {**os.environ, **self._settings(), "KUBECONFIG": kubeconfig}
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "mark_operator", env=environment, stdout=log, stderr=log
                )
                await self._process.wait()
                await asyncio.sleep(0.1)

    def change(self, **settings: Any) -> None:
        """Other settings, from the next start on."""
        self._changed = {**self._changed, **settings}

    @property
    def log(self) -> str:
        return self._log.read_text()

    async def kill(self) -> None:
        """As a node failure would: no word of farewell."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
            await self._process.wait()

    def _settings(self) -> dict[str, str]:
        return {
            "POD_NAMESPACE": self._namespace,
            "MARK_WATCH_NAMESPACES": json.dumps([self._namespace]),
            "MARK_TRAINER_IMAGE": "localhost/mark-trainer:test",
            "MARK_PROGRESS_PORT": "0",
            "MARK_HEALTH_PORT": "0",
            "MARK_LOG_LEVEL": "INFO",
            "MARK_TIMINGS": json.dumps(QUICK),
            **{f"MARK_{name.upper()}": json.dumps(value) for name, value in self._changed.items()},
        }


@dataclass(frozen=True)
class Outcome:
    """What a workload came to."""

    state: str
    reasons: dict[str, str]
    children: dict[str, str]
    creates: dict[tuple[str, str], int]
    deletes: dict[tuple[str, str], int]
    calls: int
    starts: int
    fault_done: bool = False
    late_writes: int = 0
    extra: Body = field(default_factory=dict)

    def comparable(self) -> Body:
        """What a fault must not change."""
        return {"state": self.state, "reasons": self.reasons, "children": self.children, "creates": self.creates, "deletes": self.deletes}


@asynccontextmanager
async def stage(
    server: ApiServer,
    workload: Workload,
    log: Path,
    proxy_type: type[FaultProxy] = FaultProxy,
    kubelet_type: Callable[[Rest, str, Script], PretendKubelet] = PretendKubelet,
    **settings: Any,
) -> AsyncIterator[tuple[Person, FaultProxy, OperatorProcess, str]]:
    """A namespace with a claim, the pretend kubelet, the proxy and the operator behind it."""
    namespace = await asyncio.to_thread(server.fresh_namespace)
    process = OperatorProcess(server, namespace, log, **settings)
    async with Rest(server.url, server.tokens["admin"], str(server.certificate)) as rest:
        await _make_claim(rest, namespace)
        async with proxy_type(server.url, str(server.certificate), process.kill) as proxy:
            kubelet = kubelet_type(rest, namespace, workload.script)
            tasks = [asyncio.create_task(kubelet.run()), asyncio.create_task(process.run(proxy.url))]
            try:
                yield Person(rest, namespace, workload.kind, "run"), proxy, process, namespace
            finally:
                for task in tasks:
                    task.cancel()
                await process.kill()
                await asyncio.gather(*tasks, return_exceptions=True)


async def tell(server: ApiServer, workload: Workload, log: Path, fault: Fault | None = None, trouble: WatchTrouble | None = None) -> Outcome:
    """The whole story once, with at most one fault, and what is left when the cluster is quiet again."""
    async with stage(server, workload, log) as (person, proxy, process, namespace):
        proxy.fault = fault
        if trouble is not None:
            proxy.trouble = trouble
        await person.create(workload.manifest)
        await workload.story(person)
        late = await _quiet(proxy.ledger)
        return await _outcome(person, proxy, process, namespace, late)


async def _quiet(ledger: Ledger, seconds: float = 1.5) -> int:
    """Wait until nothing was written for a while; how many writes came after the story's end."""
    at_end = ledger.calls
    calls = -1
    while calls != ledger.calls:
        calls = ledger.calls
        await asyncio.sleep(seconds)
    return calls - at_end


async def _outcome(person: Person, proxy: FaultProxy, process: OperatorProcess, namespace: str, late: int) -> Outcome:
    with contextlib.suppress(Refused):
        run = await person.see()
        return Outcome(
            state=run["status"].get("state", ""),
            reasons={item["type"]: f"{item['status']} {item['reason']}" for item in run["status"].get("conditions", [])},
            children=await _children(person.rest, namespace),
            creates=proxy.ledger.of("POST"),
            deletes=proxy.ledger.of("DELETE"),
            calls=proxy.ledger.calls,
            starts=process.starts,
            fault_done=proxy.fault_done.is_set(),
            late_writes=late,
            extra={"stages": run["status"].get("stages", [])},
        )
    children = await _children(person.rest, namespace)
    return Outcome("(deleted)", {}, children, proxy.ledger.of("POST"), proxy.ledger.of("DELETE"), proxy.ledger.calls, process.starts, proxy.fault_done.is_set(), late)


async def _children(rest: Rest, namespace: str) -> dict[str, str]:
    """Every object in the namespace that a run can own, with how it stands."""
    found = {}
    for resource, group in CHILDREN.items():
        for item in (await rest.get(f"{group}/namespaces/{namespace}/{resource}"))["items"]:
            name = item["metadata"]["name"]
            if name == "kube-root-ca.crt" or name.startswith("mark-operator"):
                continue
            name = "-".join(name.split("-")[:-1]) if resource == "pods" else name  # a Pod's name ends in chance
            found[f"{resource}/{name}"] = _standing(resource, item)
    return found


def _standing(resource: str, item: Body) -> str:
    if resource == "pods":
        return str(item["status"].get("phase"))
    if resource == "jobs":
        conditions = item["status"].get("conditions", [])
        return ",".join(sorted(condition["type"] for condition in conditions if condition["status"] == "True"))
    return "there"


async def _make_claim(rest: Rest, namespace: str) -> None:
    claims = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    await rest.post(claims, {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": CLAIM}, "spec": spec})
    status = {"phase": "Bound", "accessModes": ["ReadWriteMany"], "capacity": {"storage": "1Gi"}}
    await rest.patch(f"{claims}/{CLAIM}/status", {"status": status})
