"""Asks the API server about a plan's prerequisites. It changes nothing, and judges nothing."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace

from mark_crds import names

from mark_operator.cluster import ApiError, Cluster
from mark_operator.run.means import CPU_STAGES, Means
from mark_operator.run.objects import bind, job_template, pod_of
from mark_operator.run.plan import Rendering
from mark_operator.seen import UNKNOWN, Answer, Body, Findings
from mark_operator.settings import Settings
from mark_operator.together import Together

PLAN_UID = "00000000-0000-0000-0000-000000000000"


class Questions:
    """Asks for plans. Passes that ask the same at the same time share one request, sent after all of them asked."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._answers: Together[tuple[str, ...], Answer] = Together()
        self._dry_runs: Together[tuple[str, ...], tuple[str, Answer]] = Together()

    async def look(self, rendering: Rendering, uid: str, *, confirmed: bool) -> Findings:
        """All answers for one plan, asked at once; for a confirmed run also the stop switch, asked last."""
        found = await self._prerequisites(rendering, uid)
        return replace(found, freeze=await self._freeze(rendering.means.settings)) if confirmed else found

    async def quotas(self, namespace: str) -> tuple[Body, ...]:
        """The quotas of a namespace, as far as the operator may see them."""
        return (await self._quotas(namespace)).items

    async def _quotas(self, namespace: str) -> Answer:
        return await self._list("ResourceQuota", namespace)

    async def _prerequisites(self, rendering: Rendering, uid: str) -> Findings:
        means = rendering.means
        namespace = means.key.namespace
        jobs = {_stage(job): bind(job, kind=means.key.kind, uid=uid, attempt=1) for job in rendering.jobs}
        roles = _roles(tuple(jobs))
        pods = {stage: pod_of(jobs[stage]) for stage in roles} if means.settings.dry_run_pods else {}
        claim, account, quotas, nodes, *dry_runs = await asyncio.gather(
            self._get("PersistentVolumeClaim", namespace, means.spec.workspace.claim_name),
            self._get("ServiceAccount", namespace, means.settings.service_account_name),
            self._quotas(namespace),
            self._nodes(means, tuple(jobs)),
            *(self._dry_run(means, stage, body) for stage, body in (*jobs.items(), *pods.items())),
        )
        return Findings(
            claim=claim,
            storage_class=await self._storage_class(claim),
            service_account=account,
            nodes=nodes,
            quotas=quotas,
            jobs=dict(zip(jobs, dry_runs, strict=False)),
            pods=dict(zip(pods, dry_runs[len(jobs) :], strict=True)),
        )

    async def _nodes(self, means: Means, stages: tuple[str, ...]) -> Answer:
        """What the nodes offer. Only a plan that needs GPUs asks: a node is a large object, and there may be many."""
        if not any(means.gpus_per_node(stage) for stage in stages):
            return UNKNOWN
        return await self._answers.ask(("nodes",), lambda: _list(self._cluster, "Node", None, _offer))

    async def _get(self, kind: str, namespace: str | None, name: str) -> Answer:
        question = ("get", kind, namespace or "", name)
        return await self._answers.ask(question, lambda: _get(self._cluster, kind, namespace, name))

    async def _list(self, kind: str, namespace: str | None) -> Answer:
        question = ("list", kind, namespace or "")
        return await self._answers.ask(question, lambda: _list(self._cluster, kind, namespace))

    async def _storage_class(self, claim: Answer) -> Answer:
        """The class of a claim that is not bound yet; nobody asks for that of a bound one."""
        if claim.outcome != "Found" or claim.item.get("status", {}).get("phase") == "Bound":
            return Answer("Unknown", message="not needed")
        name = claim.item["spec"].get("storageClassName")
        return await self._get("StorageClass", None, name) if name else Answer("Missing")

    async def _freeze(self, settings: Settings) -> Answer:
        """The stop switch. Whatever keeps it from being read is an answer too: nothing starts without it."""
        try:
            return await self._get("ConfigMap", settings.operator_namespace, names.FREEZE_NAME)
        except ApiError as error:
            return Answer("Unknown", message=str(error))

    async def _dry_run(self, means: Means, stage: str, body: Body) -> Answer:
        """Whether this object would be taken. Another run's answer counts if the two differ in nothing but the name;
        anything but a yes is asked for under the run's own name, because it speaks of a name."""
        name = body["metadata"]["name"]

        async def send() -> tuple[str, Answer]:
            return name, await _dry_run(self._cluster, body)

        asked_for, answer = await self._dry_runs.ask((body["kind"], _shape(means, stage)), send)
        if answer.outcome == "Found" or asked_for == name:
            return answer
        return await _dry_run(self._cluster, body)


def _shape(means: Means, stage: str) -> str:
    """The rendered Job of the stage as it would be in a run of another name; all that admission can judge by."""
    return json.dumps(job_template(replace(means, key=means.key._replace(name="any")), stage))


def _stage(job: Body) -> str:
    return str(job["metadata"]["labels"][names.STAGE_LABEL])


def _roles(stages: tuple[str, ...]) -> list[str]:
    """One stage for each kind of Pod: those that never use a GPU, and those that train."""
    small = [stage for stage in stages if stage in CPU_STAGES][:1]
    large = [stage for stage in stages if stage not in CPU_STAGES][:1]
    return small + large


async def _get(cluster: Cluster, kind: str, namespace: str | None, name: str) -> Answer:
    try:
        found = await cluster.get(kind, namespace, name)
    except ApiError as error:
        return _unknown(error)
    return Answer("Missing") if found is None else Answer("Found", (found,))


def _offer(node: Body) -> Body:
    return {"status": {"allocatable": node.get("status", {}).get("allocatable", {})}}


async def _list(
    cluster: Cluster, kind: str, namespace: str | None, kept: Callable[[Body], Body] = lambda item: item
) -> Answer:
    """All objects of a kind, or what is kept of each."""
    try:
        items = [kept(item) async for item in cluster.list_all(kind, namespace)]
    except ApiError as error:
        return _unknown(error)
    return Answer("Found", tuple(items))


async def _dry_run(cluster: Cluster, body: Body) -> Answer:
    try:
        created = await cluster.create(body, dry_run=True)
    except ApiError as error:
        if error.exists_already:
            return Answer(
                "Unknown", message="an object of that name exists already; it must be gone before the run starts"
            )
        if "does not support dry run" in error.message:
            return Answer("Unknown", message=error.message)
        return _unknown(error) if error.lacks_rights or error.is_transient else Answer("Refused", message=error.message)
    return Answer("Found", (created,))


def _unknown(error: ApiError) -> Answer:
    """A question that we may not ask is unknown; one that got no answer is asked again."""
    if error.lacks_rights:
        return Answer("Unknown", message=f"the operator may not look: {error.message}")
    raise error
