"""Asks the API server about a plan's prerequisites. It changes nothing, and judges nothing."""

import asyncio
from dataclasses import replace

from mark_crds import names

from mark_operator.cluster import ApiError, Cluster
from mark_operator.run.means import CPU_STAGES
from mark_operator.run.objects import bind, pod_of
from mark_operator.run.plan import Rendering
from mark_operator.seen import Answer, Body, Findings
from mark_operator.settings import Settings

PLAN_UID = "00000000-0000-0000-0000-000000000000"


async def look(cluster: Cluster, rendering: Rendering, uid: str, *, confirmed: bool) -> Findings:
    """All answers for one plan, asked at once; for a confirmed run also the stop switch, asked last."""
    found = await _prerequisites(cluster, rendering, uid)
    return replace(found, freeze=await _freeze(cluster, rendering.means.settings)) if confirmed else found


async def _prerequisites(cluster: Cluster, rendering: Rendering, uid: str) -> Findings:
    means = rendering.means
    namespace = means.key.namespace
    jobs = {_stage(job): bind(job, kind=means.key.kind, uid=uid, attempt=1) for job in rendering.jobs}
    roles = _roles(tuple(jobs))
    pods = {stage: pod_of(jobs[stage]) for stage in roles} if means.settings.dry_run_pods else {}
    claim, account, quotas, nodes, *dry_runs = await asyncio.gather(
        _get(cluster, "PersistentVolumeClaim", namespace, means.spec.workspace.claim_name),
        _get(cluster, "ServiceAccount", namespace, means.settings.service_account_name),
        _list(cluster, "ResourceQuota", namespace),
        _list(cluster, "Node", None),
        *(_dry_run(cluster, body) for body in (*jobs.values(), *pods.values())),
    )
    return Findings(
        claim=claim,
        storage_class=await _storage_class(cluster, claim),
        service_account=account,
        nodes=nodes,
        quotas=quotas,
        jobs=dict(zip(jobs, dry_runs, strict=False)),
        pods=dict(zip(pods, dry_runs[len(jobs) :], strict=True)),
    )


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


async def _list(cluster: Cluster, kind: str, namespace: str | None) -> Answer:
    try:
        items = [item async for item in cluster.list_all(kind, namespace)]
    except ApiError as error:
        return _unknown(error)
    return Answer("Found", tuple(items))


async def _freeze(cluster: Cluster, settings: Settings) -> Answer:
    """The stop switch. Whatever keeps it from being read is an answer too: nothing starts without it."""
    try:
        found = await cluster.get("ConfigMap", settings.operator_namespace, names.FREEZE_NAME)
    except ApiError as error:
        return Answer("Unknown", message=str(error))
    return Answer("Missing") if found is None else Answer("Found", (found,))


async def _storage_class(cluster: Cluster, claim: Answer) -> Answer:
    """The class of a claim that is not bound yet; nobody asks for that of a bound one."""
    if claim.outcome != "Found" or claim.item.get("status", {}).get("phase") == "Bound":
        return Answer("Unknown", message="not needed")
    name = claim.item["spec"].get("storageClassName")
    return await _get(cluster, "StorageClass", None, name) if name else Answer("Missing")


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
