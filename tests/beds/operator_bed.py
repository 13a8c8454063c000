"""The operator as a process of its own behind the fault proxy, told one workload, and what is left in the cluster afterwards."""

import asyncio
import contextlib
import itertools
import json
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from control_plane import ApiServer
from fault_proxy import Ailment, Fault, FaultProxy, Ledger, Trouble
from pretend_kubelet import PretendKubelet, Script
from rest import Refused, Rest
from workloads import CLAIM, Person, Workload

Body = dict[str, Any]
QUICK = {"leaseSeconds": 2, "renewSeconds": 1, "relistSeconds": 5, "checkSeconds": 2, "activeSeconds": 2, "firstRetrySeconds": 1, "longestRetrySeconds": 2}
# For a crowd of runs: every answer comes from the change itself, and a busy machine does not cost the operator its lease.
UNHURRIED = {**QUICK, "leaseSeconds": 30, "renewSeconds": 5, "checkSeconds": 60, "relistSeconds": 60}
# The same, and a killed operator's successor need not wait long.
REPLACED_SOON = {**UNHURRIED, "leaseSeconds": 6, "renewSeconds": 1}
# A crowd of stories: the Lease lasts, and what the watch misses is found soon.
CROWDED = {**QUICK, "leaseSeconds": 30, "renewSeconds": 5, "relistSeconds": 10, "checkSeconds": 10, "activeSeconds": 10}
# One story whose operator is killed: its successor need not wait long for the Lease.
ALONE = {**QUICK, "leaseSeconds": 5, "renewSeconds": 1}
# As in a cluster, but for the pauses between attempts: only the clock of the operator's own making heals what the watch lost.
AS_INSTALLED = {"firstRetrySeconds": 1, "longestRetrySeconds": 2}
RESTART_PAUSES = (0.1, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0)
QUIET_SECONDS = 3.0
CONTROLLER_SECONDS = 30.0
# Children that a run may own; Pods belong to their Jobs.
CHILDREN = {"jobs": "/apis/batch/v1", "configmaps": "/api/v1", "services": "/api/v1", "pods": "/api/v1"}


@dataclass(frozen=True)
class Partition:
    """The operator cut off from the API server, for so long, after the stories have gone on for a while."""

    kind: Ailment
    begins_after: float
    seconds: float


class OperatorProcess:
    """`python -m mark_operator`, started again whenever it ends, with a kubelet's pauses."""

    def __init__(self, server: ApiServer, namespace: str, log: Path, **settings: Any) -> None:
        self._server, self._namespace, self._log, self._changed = server, namespace, log, settings
        self._process: asyncio.subprocess.Process | None = None
        self.starts = 0

    async def run(self, url: str) -> None:
        kubeconfig = str(self._server.kubeconfig(url=url))
        with self._log.open("ab") as log:
            for pause in itertools.chain(RESTART_PAUSES, itertools.repeat(RESTART_PAUSES[-1])):
                self.starts += 1
                environment = {**os.environ, **self._settings(), "KUBECONFIG": kubeconfig}
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "mark_operator", env=environment, stdout=log, stderr=log
                )
                await self._process.wait()
                await asyncio.sleep(pause)

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
class Case:
    """One story with at most one fault or trouble."""

    workload: Workload
    fault: Fault | None = None
    trouble: Trouble | None = None
    begins_after: float = 0.0
    """Seconds that the person waits before the story begins."""

    def __str__(self) -> str:
        harm = f"{self.fault.harm} at write {self.fault.at}" if self.fault else ""
        trouble = f"{self.trouble.kind} after write {self.trouble.after}" if self.trouble else ""
        return f"{self.workload.name} {harm}{trouble} +{self.begins_after:g} s"


@dataclass(frozen=True)
class Outcome:
    """What a story came to."""

    state: str
    reasons: dict[str, str]
    children: dict[str, str]
    creates: dict[tuple[str, str], int]
    deletes: dict[tuple[str, str], int]
    calls: int
    struck: bool
    """Whether the fault or trouble came about."""
    looked_after: float | None = None
    """Seconds from the end of the trouble to the first look at the run."""

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
        await make_claim(rest, namespace)
        async with proxy_type(server.url, str(server.certificate), process.kill) as proxy:
            kubelet = kubelet_type(rest, namespace, workload.script)
            async with _at_work(process, proxy, kubelet):
                yield Person(rest, namespace, workload.kind, "run"), proxy, process, namespace


@asynccontextmanager
async def _at_work(process: OperatorProcess, proxy: FaultProxy, *kubelets: PretendKubelet) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(process.run(proxy.url)), *(asyncio.create_task(kubelet.run()) for kubelet in kubelets)]
    try:
        yield
    finally:
        crashed = [task.exception() for task in tasks if task.done() and not task.cancelled()]
        for task in tasks:
            task.cancel()
        await process.kill()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert not crashed, f"the bed itself broke: {crashed}"


@dataclass(frozen=True)
class Told:
    """What many stories came to, in their order; a text says which one never ended."""

    outcomes: list[Outcome | str]
    late_writes: int
    """Writes in the quiet cluster afterwards."""
    starts: int
    """How often the operator was started."""
    looked_after: float | None = None
    """Seconds from the end of the partition to the first look at any run."""


@dataclass(frozen=True)
class Crowd:
    """Many stories at one operator: who tells each, and where."""

    people: list[Person]
    namespaces: list[str]
    proxy: FaultProxy
    process: OperatorProcess


@asynccontextmanager
async def crowd(server: ApiServer, cases: Sequence[Case], log: Path, **settings: Any) -> AsyncIterator[Crowd]:
    """A namespace with a claim and a pretend kubelet for each case, and one operator for all."""
    async with Rest(server.url, server.tokens["admin"], str(server.certificate)) as rest:
        home, *namespaces = [await make_namespace(rest) for _ in range(len(cases) + 1)]
        process = OperatorProcess(server, home, log, **{"watch_namespaces": namespaces, **settings})
        async with FaultProxy(server.url, str(server.certificate), process.kill) as proxy:
            places = list(zip(namespaces, cases, strict=True))
            kubelets = [PretendKubelet(rest, namespace, case.workload.script) for namespace, case in places]
            async with _at_work(process, proxy, *kubelets):
                people = [Person(rest, namespace, case.workload.kind, "run") for namespace, case in places]
                yield Crowd(people, namespaces, proxy, process)


async def tell_all(
    server: ApiServer, cases: Sequence[Case], log: Path, *, patience: float = 120, partition: Partition | None = None, **settings: Any
) -> Told:
    """Many stories at once, each in a namespace of its own, to one operator."""
    async with crowd(server, cases, log, **settings) as bed:
        places = list(zip(bed.people, bed.namespaces, strict=True))
        striking = asyncio.create_task(_strike(bed.proxy, partition))
        stories = [_story(*place, bed.proxy, case, patience) for place, case in zip(places, cases, strict=True)]
        problems = await asyncio.gather(*stories)
        await striking
        await _quiet(bed.proxy.ledger)
        calls = bed.proxy.ledger.calls
        await asyncio.sleep(QUIET_SECONDS)
        late = bed.proxy.ledger.calls - calls
        outcomes = [problem or await _outcome(*place, bed.proxy) for problem, place in zip(problems, places, strict=True)]
        return Told(outcomes, late, bed.process.starts, bed.proxy.everywhere.looked_after)


async def _story(person: Person, namespace: str, proxy: FaultProxy, case: Case, patience: float) -> str:
    """Tell it; the words of whatever it waited for in vain."""
    person.patience = patience
    scene = proxy.scene(namespace)
    scene.fault = case.fault
    if case.trouble is not None:
        proxy.plan(namespace, case.trouble)
    await asyncio.sleep(case.begins_after)
    try:
        await person.create(case.workload.manifest)
        await case.workload.story(person)
    except AssertionError as error:
        return str(error)
    while scene.trouble is not None and scene.struck and not scene.healed:
        await asyncio.sleep(0.5)
    return ""


async def _strike(proxy: FaultProxy, partition: Partition | None) -> None:
    """Cut the operator off from the whole API server, and wait until it looks at a run again."""
    if partition is None:
        return
    await asyncio.sleep(partition.begins_after)
    proxy.begin(Trouble(partition.kind, 0, partition.seconds))
    await asyncio.sleep(partition.seconds)


async def _quiet(ledger: Ledger, seconds: float = 1.5) -> None:
    """Wait until nothing was written for a while."""
    calls = -1
    while calls != ledger.calls:
        calls = ledger.calls
        await asyncio.sleep(seconds)


async def _outcome(person: Person, namespace: str, proxy: FaultProxy) -> Outcome:
    scene, state, reasons = proxy.scene(namespace), "(deleted)", {}
    with contextlib.suppress(Refused):
        status = (await person.see())["status"]
        state = status.get("state", "")
        reasons = {item["type"]: f"{item['status']} {item['reason']}" for item in status.get("conditions", [])}
    children = await _children_at_rest(person.rest, namespace, gone=state == "(deleted)")
    creates, deletes = scene.ledger.of("POST"), scene.ledger.of("DELETE")
    return Outcome(state, reasons, children, creates, deletes, scene.ledger.calls, scene.struck, scene.looked_after)


async def _children_at_rest(rest: Rest, namespace: str, gone: bool) -> dict[str, str]:
    """What a run can own, once Kubernetes' own controllers have done their part."""
    end = asyncio.get_running_loop().time() + CONTROLLER_SECONDS
    before, found = None, await _children(rest, namespace)
    while (found != before or (gone and found) or "going" in found.values()) and asyncio.get_running_loop().time() < end:
        await asyncio.sleep(0.5)
        before, found = found, await _children(rest, namespace)
    return found


async def _children(rest: Rest, namespace: str) -> dict[str, str]:
    """Every object in the namespace that a run can own, with how it stands."""
    found = {}
    for resource, group in CHILDREN.items():
        for item in (await rest.get(f"{group}/namespaces/{namespace}/{resource}"))["items"]:
            name = item["metadata"]["name"]
            if name == "kube-root-ca.crt" or name.startswith("mark-operator"):
                continue
            name = "-".join(name.split("-")[:-1]) if resource == "pods" else name  # a Pod's name ends in chance
            found[f"{resource}/{name}"] = "going" if "deletionTimestamp" in item["metadata"] else _standing(resource, item)
    return found


def _standing(resource: str, item: Body) -> str:
    if resource == "pods":
        return str(item["status"].get("phase"))
    if resource == "jobs":
        conditions = item["status"].get("conditions", [])
        return ",".join(sorted(condition["type"] for condition in conditions if condition["status"] == "True"))
    return "there"


async def make_namespace(rest: Rest) -> str:
    """A new namespace with a service account and a bound claim."""
    name = f"test-{secrets.token_hex(4)}"
    await rest.post("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
    await rest.post(f"/api/v1/namespaces/{name}/serviceaccounts", account)
    await make_claim(rest, name)
    return name


async def make_claim(rest: Rest, namespace: str) -> None:
    claims = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    await rest.post(claims, {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": CLAIM}, "spec": spec})
    status = {"phase": "Bound", "accessModes": ["ReadWriteMany"], "capacity": {"storage": "1Gi"}}
    await rest.patch(f"{claims}/{CLAIM}/status", {"status": status})
