"""How long a Job may wait for its Pods to run, or for its queue, and what to say when that is over. It ends nothing."""

from dataclasses import dataclass

from mark_crds import names

from mark_operator import clock
from mark_operator.job_facts import Waiting
from mark_operator.messages import Note, note
from mark_operator.run.view import View
from mark_operator.seen import Body

LEFT_QUEUE = "QueueTooLong"


@dataclass(frozen=True)
class Limit:
    """The seconds that a Job may still wait, and why its attempt ends after them."""

    seconds_left: float
    why: Note


def pending_limit(view: View, job: Body, wait: Waiting) -> Limit | None:
    """The limit on Pods that do not all run. It counts from the Job's start, which an admission or a resumption moves;
    all of it stands in the cluster, so a restarted operator counts on."""
    since = _begun(job)
    if since is None:
        return None
    seconds, limit = _shortest(view.spec.get("pendingDeadlineSeconds", 0), job["spec"].get("activeDeadlineSeconds", 0))
    return Limit(seconds - clock.seconds_since(since, view.now), _why(job, wait, seconds, limit)) if seconds else None


def _shortest(pending: int, active: int) -> tuple[int, str]:
    """The seconds that Pods may be pending, with the field that says so; 0 for no limit. A Job's time runs from its
    start, and must not be over before a Pod ran: the Job would say that it took too long, not what it lacked."""
    limits = [(pending, "spec.pendingDeadlineSeconds"), (active * 9 // 10, "nine tenths of spec.activeDeadlineSeconds")]
    return min((limit for limit in limits if limit[0]), default=(0, ""))


def _begun(job: Body) -> str | None:
    """When the Job's Pods were first wanted. A Job that its controller never looked at has no start, and one that was
    just let go has none yet."""
    status, metadata = job.get("status", {}), job["metadata"]
    was_held = status.get("conditions") or names.QUEUE_LABEL in metadata["labels"]
    begun: str | None = status.get("startTime") or (None if was_held else metadata.get("creationTimestamp"))
    return begun


def _why(job: Body, wait: Waiting, seconds: int, limit: str) -> Note:
    container = job["spec"]["template"]["spec"]["containers"][0]
    needs = ", ".join(f"{number} {name}" for name, number in sorted(container["resources"]["requests"].items()))
    facts = {"job": job["metadata"]["name"], "seconds": seconds, "limit": limit, "detail": wait.detail}
    match wait.cause:
        case "Unschedulable":
            return note("Unschedulable", needs=needs, **facts)
        case "ImageNotPulled":
            return note("ImageNotPulled", image=container["image"], **facts)
        case "PodNotCreated":
            return note("PodNotCreated", **facts)
        case "PendingTooLong":
            return note("PendingTooLong", **facts)


def queue_limit(view: View, job: Body) -> Limit | None:
    """The limit on a Job that its queue does not admit. It counts from the last time that the Job was suspended, as its
    controller says, else from its creation."""
    seconds = view.spec.get("queueDeadlineSeconds", 0)
    held = [item for item in job.get("status", {}).get("conditions", ()) if item["type"] == "Suspended"]
    since = held[0].get("lastTransitionTime") if held else job["metadata"].get("creationTimestamp")
    if not seconds or since is None:
        return None
    metadata = job["metadata"]
    why = note("QueueTooLong", job=metadata["name"], queue=metadata["labels"][names.QUEUE_LABEL], seconds=seconds)
    return Limit(seconds - clock.seconds_since(since, view.now), why)
