"""Whether a quota has room for Pods of a Job, as far as its numbers tell. It asks nobody."""

from decimal import Decimal

from mark_crds import names

from mark_operator import quantity
from mark_operator.seen import Body

QUOTA_NAMES = {"cpu": ("cpu", "requests.cpu", "limits.cpu"), "memory": ("memory", "requests.memory", "limits.memory")}
JOBS = "count/jobs.batch"


def is_scoped(quota: Body) -> bool:
    """Whether it counts some Pods only; which ones is not computed here."""
    return bool(quota["spec"].get("scopes") or quota["spec"].get("scopeSelector"))


def no_room_for_job(job: Body, quota: Body) -> str:
    """Why the Job with all its Pods does not fit; empty when it does."""
    needs = {JOBS: Decimal(1), **_needs(job, job["spec"]["parallelism"])}
    return _shortage(job, needs, "in all its Pods", quota)


def no_room_for_pods(job: Body, count: int, quotas: tuple[Body, ...]) -> str:
    """Why so many more Pods of a Job that is there do not fit; empty when they do, or nobody can tell."""
    where = "in all its Pods" if count == job["spec"]["parallelism"] else f"for {count} more of its Pods"
    shortages = (_shortage(job, _needs(job, count), where, quota) for quota in quotas if not is_scoped(quota))
    return next((shortage for shortage in shortages if shortage), "")


def _shortage(job: Body, needs: dict[str, Decimal], where: str, quota: Body) -> str:
    hard, used = quota.get("status", {}).get("hard", {}), quota.get("status", {}).get("used", {})
    for name, needed in needs.items():
        if name not in hard:
            continue
        left = quantity.parse(hard[name]) - quantity.parse(used.get(name, "0"))
        if needed > left:
            stage, rest = job["metadata"]["labels"][names.STAGE_LABEL], quantity.text_of(max(left, Decimal(0)))
            return (
                f"stage {stage} needs {quantity.text_of(needed)} {name} {where}, but ResourceQuota "
                f"{quota['metadata']['name']} has {rest} left; ask for less, or for a larger quota"
            )
    return ""


def _needs(job: Body, count: int) -> dict[str, Decimal]:
    requests = job["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]
    needs = {"pods": Decimal(count), "count/pods": Decimal(count)}
    for name, number in quantity.total(requests, count).items():
        for quota_name in QUOTA_NAMES.get(name, (f"requests.{name}",)):
            needs[quota_name] = number
    return needs
