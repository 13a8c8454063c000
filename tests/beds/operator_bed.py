"""The operator as a process of its own behind the fault proxy, told one workload, and what is left in the cluster afterwards."""

import asyncio
import contextlib
import itertools
import json
import os
import re
import secrets
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from control_plane import ApiServer
from fault_proxy import Ailment, Fault, FaultProxy, Ledger, Trouble
from mark_crds import names
from pretend_kubelet import PretendKubelet, Script
from pretend_trainer import PretendTrainer
from rest import Refused, Rest
from workloads import CLAIM, Person, Workload

Body = dict[str, Any]
QUICK = {"leaseSeconds": 2, "renewSeconds": 1, "relistSeconds": 5, "checkSeconds": 2, "activeSeconds": 2, "firstRetrySeconds": 1, "longestRetrySeconds": 2}
# For a crowd of runs: every answer comes from the change itself, and a busy machine does not cost the operator its lease.
UNHURRIED = {**QUICK, "leaseSeconds": 30, "renewSeconds": 5, "checkSeconds": 60, "relistSeconds": 60}
# The same, and a killed operator's successor need not wait long.
REPLACED_SOON = {**UNHURRIED, "leaseSeconds": 6, "renewSeconds": 1}
# A crowd of stories: the Lease lasts, and what the watch misses is found soon.
CROWDED = {**QUICK, "leaseSeconds": 30, "renewSeconds": 5, "relistSeconds": 6, "checkSeconds": 6, "activeSeconds": 6}
# One story whose operator is killed: its successor need not wait long for the Lease.
ALONE = {**QUICK, "leaseSeconds": 5, "renewSeconds": 1, "relistSeconds": 2}
# As in a cluster, but for the pauses between attempts: only the clock of the operator's own making heals what the watch lost.
AS_INSTALLED = {"firstRetrySeconds": 1, "longestRetrySeconds": 2}
RESTART_PAUSES = (0.1, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0)
# What the operator does from time to time, whatever happens.
PERIODS = ("relistSeconds", "checkSeconds", "activeSeconds")
HAND_OVER_SECONDS = 60.0
# The exception at the end of a traceback, also where several are drawn with bars.
EXCEPTION = re.compile(r"^[ |]*([\w.]+(?:Error|Exception|Interrupt))\b", re.MULTILINE)
CONTROLLER_SECONDS = 30.0
# A crowd on a busy machine takes minutes for what a story alone does in seconds.
PATIENCE_WITH_CROWDS_SECONDS = 400.0
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

    @property
    def raised(self) -> Counter[str]:
        """How often which exception stands in its log, caught or not."""
        lines = self.log.splitlines()
        bare = "\n".join(line for line in lines if not line.startswith("{"))
        caught = [json.loads(line).get("error", "") for line in lines if line.startswith("{")]
        kinds = [*((EXCEPTION.findall(error) or ["(nameless)"])[-1] for error in caught if error), *EXCEPTION.findall(bare)]
        return Counter(kind.rsplit(".", 1)[-1] for kind in kinds)

    async def hand_over(self, **settings: Any) -> None:
        """Stop it as the kubelet does, and wait until its successor leads, with other settings."""
        assert self._process is not None
        self.change(**settings)
        led, end = self.log.count("leading as"), asyncio.get_running_loop().time() + HAND_OVER_SECONDS
        self._process.terminate()
        while self.log.count("leading as") == led:
            assert asyncio.get_running_loop().time() < end, self.log[-2000:]
            await asyncio.sleep(0.1)

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

    run: Body
    """What a fault must not change of the run's status."""
    models: dict[str, list[str]]
    """The versions of each registry entry."""
    events: Counter[str]
    """How often each reason was told in Events of the run."""
    children: dict[str, str]
    creates: dict[tuple[str, str], int]
    deletes: dict[tuple[str, str], int]
    calls: int
    """Writes that were carried out."""
    struck: bool
    """Whether the fault or trouble came about."""
    went_on_after: float | None = None
    """Seconds from the end of the trouble to the first look at the run, or to the story's end if that came first; negative when it was over before."""

    def comparable(self) -> Body:
        """What a fault must not change; Events may be lost."""
        children = {name: standing for name, standing in self.children.items() if not self._failed_with_its_job(name)}
        own = {"models": self.models, "children": children, "creates": self.creates, "deletes": self.deletes}
        return {**self.run, **own}

    def _failed_with_its_job(self, name: str) -> bool:
        """One of several ranks that failed before its Job is kept; one that still worked then is deleted by the Job controller. Which came first is chance."""
        resource, _, pod = name.partition("/")
        job = self.children.get(f"jobs/{pod.rpartition('-')[0]}", "")
        of_ranks = any(child.startswith("services/") for child in self.children)
        return of_ranks and resource == "pods" and self.children[name] == "Failed" and "Failed" in job


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
async def _at_work(process: OperatorProcess, proxy: FaultProxy, *players: PretendKubelet | PretendTrainer) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(process.run(proxy.url)), *(asyncio.create_task(player.run()) for player in players)]
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
    late_writes: Counter[tuple[str, str, str]]
    """Writes that were asked for in the quiet cluster afterwards."""
    late_lists: int
    """How often the operator listed all runs meanwhile."""
    starts: int
    """How often the operator was started until then."""
    raised: Counter[str] = field(default_factory=Counter)
    """How often which exception stands in its log."""
    conflicts: int = 0
    """Writes that the API server refused because somebody else had written in between."""
    looked_after: float | None = None
    """Seconds from the end of the partition to the first look at any run."""

    @classmethod
    def together(cls, told: Sequence["Told"]) -> "Told":
        """Several tellings as one; the fewest lists that any of them saw."""
        return cls(
            outcomes=[outcome for one in told for outcome in one.outcomes],
            late_writes=sum((one.late_writes for one in told), Counter[tuple[str, str, str]]()),
            late_lists=min((one.late_lists for one in told), default=0),
            starts=sum(one.starts for one in told),
            raised=sum((one.raised for one in told), Counter[str]()),
            conflicts=sum(one.conflicts for one in told),
        )


@dataclass(frozen=True)
class Crowd:
    """Many stories at one operator: who tells each, and where."""

    people: list[Person]
    namespaces: list[str]
    proxy: FaultProxy
    process: OperatorProcess


@asynccontextmanager
async def crowd(server: ApiServer, cases: Sequence[Case], log: Path, **settings: Any) -> AsyncIterator[Crowd]:
    """A namespace with a claim, a pretend kubelet and pretend trainers for each case, and one operator for all."""
    async with Rest(server.url, server.tokens["admin"], str(server.certificate)) as rest:
        home, *namespaces = [await make_namespace(rest) for _ in range(len(cases) + 1)]
        process = OperatorProcess(server, home, log, **{"watch_namespaces": namespaces, **settings})
        async with FaultProxy(server.url, str(server.certificate), process.kill) as proxy:
            places = list(zip(namespaces, cases, strict=True))
            kubelets = [PretendKubelet(rest, namespace, case.workload.script) for namespace, case in places]
            trainers = [PretendTrainer(rest, namespace, case.workload.posts) for namespace, case in places]
            async with _at_work(process, proxy, *kubelets, *trainers):
                people = [Person(rest, namespace, case.workload.kind, "run") for namespace, case in places]
                yield Crowd(people, namespaces, proxy, process)


async def tell_all(
    server: ApiServer,
    cases: Sequence[Case],
    log: Path,
    *,
    timings: Body,
    afterwards: Body | None = None,
    patience: float = 120,
    partition: Partition | None = None,
) -> Told:
    """Many stories at once, each in a namespace of its own, to one operator; with `afterwards`, these are the timings of one that takes over in the quiet cluster."""
    async with crowd(server, cases, log, timings=timings) as bed:
        places = list(zip(bed.people, bed.namespaces, strict=True))
        striking = asyncio.create_task(_strike(bed.proxy, partition))
        stories = [_story(*place, bed.proxy, case, patience) for place, case in zip(places, cases, strict=True)]
        ends = await asyncio.gather(*stories)
        await striking
        await _quiet(bed.proxy.ledger)
        starts, made, lists = bed.process.starts, bed.proxy.ledger.made.copy(), bed.proxy.lists
        if afterwards is not None:
            await bed.process.hand_over(timings=afterwards)
        await _listed(bed.proxy, lists)
        await asyncio.sleep(longest_period(afterwards or timings) + 1)
        late_writes, late_lists = bed.proxy.ledger.made - made, bed.proxy.lists - lists
        outcomes = [
            end if isinstance(end, str) else await _outcome(*place, bed.proxy, end) for end, place in zip(ends, places, strict=True)
        ]
        conflicts, looked_after = bed.proxy.ledger.conflicts, bed.proxy.everywhere.looked_after
        return Told(outcomes, late_writes, late_lists, starts, bed.process.raised, conflicts, looked_after)


def longest_period(timings: Body) -> float:
    return float(max(timings[period] for period in PERIODS))


async def _story(person: Person, namespace: str, proxy: FaultProxy, case: Case, patience: float) -> float | str:
    """Tell it; when it was over, or the words of whatever it waited for in vain."""
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
    over_at = asyncio.get_running_loop().time()
    while scene.trouble is not None and scene.struck and not scene.healed:
        await asyncio.sleep(0.5)
    return over_at


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


async def _listed(proxy: FaultProxy, lists: int) -> None:
    """Wait until the operator goes through all runs once more; one that was killed at the end of the story has to start first."""
    end = asyncio.get_running_loop().time() + HAND_OVER_SECONDS
    while proxy.lists == lists and asyncio.get_running_loop().time() < end:
        await asyncio.sleep(0.2)


async def _outcome(person: Person, namespace: str, proxy: FaultProxy, over_at: float) -> Outcome:
    scene, run = proxy.scene(namespace), {"state": "(deleted)"}
    with contextlib.suppress(Refused):
        run = _of_the_status((await person.see())["status"])
    children = await _children_at_rest(person.rest, namespace, gone=run["state"] == "(deleted)")
    models, events = await _models(person.rest, namespace), await _events(person.rest, namespace)
    creates, deletes = scene.ledger.of("POST"), scene.ledger.of("DELETE")
    over_after = over_at - scene.ends_at
    went_on_after = over_after if scene.looked_after is None else min(scene.looked_after, over_after)
    calls = scene.ledger.writes.total()
    return Outcome(run, models, events, children, creates, deletes, calls, scene.struck, went_on_after if scene.healed else None)


def _of_the_status(status: Body) -> Body:
    """All of a status but times, messages and how far the progress came."""
    result = status.get("result", {})
    return {
        "state": status.get("state", ""),
        "reasons": {item["type"]: f"{item['status']} {item['reason']}" for item in status.get("conditions", [])},
        "stages": [_of_the_stage(entry) for entry in status.get("stages", [])],
        "result": {**result, "artifacts": sorted(item["digest"] for item in result.get("artifacts", []))},
        "ended": "finishedAt" in status,
        "told of progress": "progress" in status,
    }


def _of_the_stage(entry: Body) -> Body:
    failure = entry.get("failure", {}).get("reason")
    published = [f"{item['kind']} {item['digest']}" for item in entry.get("artifacts", [])]
    kept = {field: entry.get(field) for field in ("stage", "state", "job", "attempt", "countedFailures")}
    return {**kept, "failure": failure, "artifacts": published}


async def _models(rest: Rest, namespace: str) -> dict[str, list[str]]:
    """The versions of each registry entry, and what was judged of them."""
    found = (await rest.get(f"/apis/{names.API_VERSION}/namespaces/{namespace}/models"))["items"]
    versions = {item["metadata"]["name"]: item.get("status", {}).get("versions", []) for item in found}
    return {name: [f"{one['digest']} {one.get('passed')}" for one in some] for name, some in versions.items()}


async def _events(rest: Rest, namespace: str) -> Counter[str]:
    found = (await rest.get(f"/api/v1/namespaces/{namespace}/events"))["items"]
    return Counter(item["reason"] for item in found if item.get("reportingComponent") == "mark-operator")


async def _children_at_rest(rest: Rest, namespace: str, gone: bool) -> dict[str, str]:
    """What a run can own, once Kubernetes' own controllers have done their part."""
    end = asyncio.get_running_loop().time() + CONTROLLER_SECONDS
    before, found = None, await children(rest, namespace)
    while (found != before or (gone and found) or "going" in found.values()) and asyncio.get_running_loop().time() < end:
        await asyncio.sleep(0.5)
        before, found = found, await children(rest, namespace)
    return found


async def children(rest: Rest, namespace: str) -> dict[str, str]:
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
