"""From a raw Job and its Pods to what they mean: waiting and why, running, done with a result, or ended without one."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, get_args

from mark_crds import names
from mark_crds.job_output import LOCKED, ExitCode, Result
from mark_crds.run import State
from pydantic import ValidationError

from mark_operator import clock
from mark_operator.messages import SENTENCES, Note, note, shorten
from mark_operator.quota import no_room_for_pods
from mark_operator.seen import Body

# A stage is done only when it says what it published.
REQUIRED_ARTIFACTS = {
    "ingest": "collection",
    "dataPrep": "dataset",
    "lora": "adapter",
    "reward": "rewardModel",
    "ppo": "adapter",
    "eval": "report",
}
FINAL_CODES: dict[int, str] = {ExitCode.USER_MISTAKE: "UserMistake", ExitCode.BAD_DATA: "BadData"}
# What the kubelet says of an image that it cannot get.
IMAGE_TROUBLE = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "ErrImageNeverPull",
        "InvalidImageName",
        "ImageInspectError",
        "RegistryUnavailable",
    }
)
MORE_MEMORY = "Raise spec.cpuResources.memory"
SMALLER_BATCHES = {
    "lora": "Lower batchSize, raise gradientAccumulationSteps by as much (spec.lora), or raise spec.resources.memory",
    "reward": "Lower batchSize, raise gradientAccumulationSteps by as much (spec.rlhf.reward), or raise "
    "spec.resources.memory",
    "ppo": "Lower batchSize (spec.lora), which changes no result, or raise spec.resources.memory",
    "eval": "Raise spec.resources.memory",
}
OUTCOMES: dict[int, str] = {
    **FINAL_CODES,
    ExitCode.MACHINE_TROUBLE: "MachineTrouble",
    ExitCode.STOPPED: "Stopped",
}
# Words with a meaning of their own in a status: no trainer can say them. What the two parts agree on is not among them.
RESERVED = (SENTENCES.keys() | get_args(State)) - {*OUTCOMES.values(), "Adopted", "OutOfMemory"}
REASON = re.compile(r"[A-Z][A-Za-z0-9]*")
LAST_WORDS = 500
OOM_KILLED = "OOMKilled"
# What every Pod waits for at first; all else that a Pod waits for is trouble.
COMES_UP = "being created"
# A Job's Pods are made within a moment of its start; what takes longer has a reason.
PODS_COME_SECONDS = 5


Cause = Literal["Unschedulable", "ImageNotPulled", "PodNotCreated", "PendingTooLong"]


@dataclass(frozen=True)
class Waiting:
    """Not all Pods run yet. The cause is what to blame if that lasts too long."""

    detail: str
    cause: Cause = "PendingTooLong"

    @property
    def ordinary(self) -> bool:
        """Whether every Pod waits like this at first."""
        return self.detail.endswith(COMES_UP)


@dataclass(frozen=True)
class Held:
    """The Job is suspended."""


@dataclass(frozen=True)
class Running:
    """Every Pod runs, or did and the end is near."""


@dataclass(frozen=True)
class Stopping:
    """The end has begun, but the Job has not said so yet; Pods may still work. `by_itself`: no Pod was told to stop."""

    by_itself: bool = False


@dataclass(frozen=True)
class Done:
    """The stage succeeded and said so."""

    result: Result


@dataclass(frozen=True)
class Ended:
    """The attempt failed. `final` forbids another one; only a counted failure uses up an attempt."""

    why: Note
    final: bool = False
    counted: bool = True
    container: str | None = None
    exit_code: int | None = None
    last_words: str | None = None


Fact = Waiting | Held | Running | Stopping | Done | Ended


def read_job(job: Body, pods: tuple[Body, ...], quotas: tuple[Body, ...] = ()) -> Fact:
    """What a Job and its Pods say, and the quotas where Pods are lacking. Only the Job's own verdict counts as an end:
    until then Pods may still write."""
    mine = [pod for pod in pods if belongs(pod, job)]
    verdicts = {item["type"]: item for item in job.get("status", {}).get("conditions", ()) if item["status"] == "True"}
    if "Complete" in verdicts:
        return _completed(job, mine)
    if "Failed" in verdicts:
        return _failed(job, verdicts["Failed"], mine)
    if "FailureTarget" in verdicts or "deletionTimestamp" in job["metadata"]:
        return Stopping()
    if job["spec"].get("suspend"):
        return Held() if not any(pod_is_live(pod) for pod in mine) else Stopping()
    return _active(job, mine, quotas)


def lacks_pods(job: Body, pods: tuple[Body, ...], now: datetime) -> bool:
    """Whether Pods of a Job at work have not come into being for longer than usual."""
    started, wanted = job.get("status", {}).get("startTime"), int(job["spec"]["parallelism"])
    if started is None or is_finished(job) or job["spec"].get("suspend"):
        return False
    late = clock.seconds_since(started, now) >= PODS_COME_SECONDS
    return late and sum(belongs(pod, job) for pod in pods) < wanted


def is_finished(job: Body) -> bool:
    """Whether the Job has ended, for better or worse."""
    return _end(job) is not None


def ended_at(job: Body) -> str:
    """When the Job ended, for better or worse; empty while it has not."""
    return str((_end(job) or {}).get("lastTransitionTime", ""))


def _end(job: Body) -> Body | None:
    conditions = job.get("status", {}).get("conditions", ())
    ends = (item for item in conditions if item["type"] in ("Complete", "Failed") and item["status"] == "True")
    return next(ends, None)


def pod_is_live(pod: Body) -> bool:
    """Whether the Pod's containers may still work."""
    return pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")


def belongs(pod: Body, job: Body) -> bool:
    """Whether the Pod is this very Job's."""
    return any(owner["uid"] == job["metadata"]["uid"] for owner in pod["metadata"].get("ownerReferences", ()))


def _trainer(pod: Body) -> Body:
    statuses = pod.get("status", {}).get("containerStatuses", ())
    return next((status for status in statuses if status["name"] == names.TRAINER_CONTAINER), {})


def _terminated(pod: Body) -> Body:
    found: Body = _trainer(pod).get("state", {}).get("terminated") or {}
    return found


def runs_since(job: Body, pods: tuple[Body, ...]) -> str:
    """When the newest of the Job's running trainers began; empty when none runs."""
    states = (_trainer(pod).get("state", {}) for pod in pods if belongs(pod, job))
    return max((str(state.get("running", {}).get("startedAt", "")) for state in states), default="")


def _active(job: Body, pods: list[Body], quotas: tuple[Body, ...]) -> Fact:
    wanted = int(job["spec"]["parallelism"])
    running = sum("running" in _trainer(pod).get("state", {}) for pod in pods)
    if any(_terminated(pod) or not pod_is_live(pod) for pod in pods):
        return Running() if running else Stopping(by_itself=True)
    if running >= wanted:
        return Running()
    waits = [wait for pod in pods if (wait := _why_waiting(pod)) is not None]
    usual = f"its Pod is {COMES_UP}" if wanted == 1 else f"its Pods are {COMES_UP}"
    missing = Waiting(no_room_for_pods(job, wanted - len(pods), quotas) or usual, "PodNotCreated")
    first = waits[0] if waits else missing if len(pods) < wanted else Waiting(f"the containers are {COMES_UP}")
    return replace(first, detail=f"{running} of {wanted} Pods run; {first.detail}") if running else first


def _why_waiting(pod: Body) -> Waiting | None:
    """Why this Pod does not run, as far as anybody has said."""
    state = _trainer(pod).get("state", {})
    waiting = state.get("waiting", {})
    if waiting.get("reason") and waiting["reason"] != "ContainerCreating":
        cause: Cause = "ImageNotPulled" if waiting["reason"] in IMAGE_TROUBLE else "PendingTooLong"
        return Waiting(f"{waiting['reason']}: {waiting.get('message', 'no details')}", cause)
    for condition in pod.get("status", {}).get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            reason = condition.get("reason", "Unschedulable")
            cause = "Unschedulable" if reason == "Unschedulable" else "PendingTooLong"
            return Waiting(f"{reason}: {condition.get('message', 'no details')}", cause)
    creating = "running" not in state and pod.get("spec", {}).get("nodeName")
    return Waiting(f"the container is {COMES_UP}") if creating else None


def _completed(job: Body, pods: list[Body]) -> Fact:
    stage, name = job["metadata"]["labels"][names.STAGE_LABEL], job["metadata"]["name"]
    # The first Pod speaks for all.
    ends = [_terminated(pod) for pod in pods if _index(pod) == 0]
    words = next((str(end.get("message", "")) for end in ends if end.get("exitCode") == 0), "")
    if not words:
        return Ended(note("NoResult", job=name, detail="no termination message"))
    result = _parse(words)
    problem = "not a Result" if result is None else _problem(result, stage)
    if result is None or problem:
        return Ended(note("NoResult", job=name, detail=problem), last_words=_last_words(None, words))
    return Done(result)


def _problem(result: Result, stage: str) -> str:
    if result.stage != stage:
        return f"it speaks of stage {result.stage}"
    if result.outcome != "Done" and not (result.outcome == "Adopted" and stage == "preflight" and result.adopted):
        return f"its outcome is {result.outcome}"
    required = REQUIRED_ARTIFACTS.get(stage)
    if result.outcome == "Done" and required and not any(artifact.kind == required for artifact in result.artifacts):
        return f"it names no {required} with a digest"
    endless = next((measure for measure in result.measures if not _is_finite(measure.value)), None)
    return f"its measure {endless.name} is {endless.value}" if endless is not None else ""


def _is_finite(value: str) -> bool:
    """False for a number that is none; a measure may also be a word."""
    try:
        return Decimal(value).is_finite()
    except InvalidOperation:
        return True


def lacking(result: Result, stages: Sequence[str]) -> str:
    """What an adopted result should name for these stages and does not; empty when nothing is lacking. A collection is
    shared and may have moved on since, so nobody asks for it."""
    kinds = {artifact.kind for artifact in result.artifacts}
    wanted = [REQUIRED_ARTIFACTS[stage] for stage in stages if stage in REQUIRED_ARTIFACTS and stage != "ingest"]
    return ", ".join(kind for kind in wanted if kind not in kinds)


def _index(pod: Body) -> int:
    return int(pod["metadata"].get("annotations", {}).get("batch.kubernetes.io/job-completion-index", "0"))


def _parse(message: str) -> Result | None:
    try:
        result = Result.model_validate_json(message)
    except ValidationError:
        return None
    return result if REASON.fullmatch(result.reason) else None


def _parse_failure(message: str, stage: str, code: int) -> Result | None:
    """The Result of a container that failed; None when it speaks of another stage, of another end than its exit code,
    or in words that only the operator may use."""
    result = _parse(message)
    if result is None or result.stage != stage or result.outcome != OUTCOMES.get(code) or result.reason in RESERVED:
        return None
    return result


def _failed(job: Body, verdict: Body, pods: list[Body]) -> Ended:
    name = job["metadata"]["name"]
    if verdict.get("reason") == "DeadlineExceeded":
        return Ended(note("DeadlineExceeded", job=name), final=True)
    bad = [pod for pod in pods if _exit_code(pod) or (_exit_code(pod) is None and _disruption(pod))]
    if bad:
        return _read_failure(min(bad, key=_precedence), job)
    return _without_pod(name, str(verdict.get("message", "")))


def _precedence(pod: Body) -> tuple[int, str]:
    """The Pod whose end explains the others' comes first. The kind of end decides: a rank that loses its peer fails
    too, and nodes have clocks of their own. Time decides among equals only."""
    code, terminated = _exit_code(pod), _terminated(pod)
    kinds = (
        code in FINAL_CODES,
        bool(_disruption(pod)),
        terminated.get("reason") == OOM_KILLED,
        code != ExitCode.STOPPED,
        True,
    )
    return kinds.index(True), str(terminated.get("finishedAt", ""))


def _exit_code(pod: Body) -> int | None:
    """None while the trainer has not ended, or where nobody saw its end."""
    code = _terminated(pod).get("exitCode")
    return int(code) if code is not None else None


def _read_failure(pod: Body, job: Body) -> Ended:
    terminated, name = _terminated(pod), str(pod["metadata"]["name"])
    code, message = _exit_code(pod), str(terminated.get("message", ""))
    if code is None:
        return _disrupted(name, _disruption(pod))
    stage = job["metadata"]["labels"][names.STAGE_LABEL]
    result = _parse_failure(message, stage, code)
    facts: dict[str, Any] = {
        "container": names.TRAINER_CONTAINER,
        "exit_code": code,
        "last_words": _last_words(result, message),
    }
    if code in FINAL_CODES:
        why = _in_its_words(result) if result else _nameless(FINAL_CODES[ExitCode(code)], name, code)
        return Ended(why, final=True, **facts)
    if _disruption(pod):
        return _disrupted(name, _disruption(pod), **facts)
    if code == ExitCode.STOPPED:
        return _stopped(result, facts)
    if terminated.get("reason") == OOM_KILLED:
        cure = SMALLER_BATCHES.get(stage, MORE_MEMORY)
        return Ended(note("OutOfMemory", container=names.TRAINER_CONTAINER, cure=cure), **facts)
    return Ended(_in_its_words(result) if result else _nameless("ContainerFailed", name, code), **facts)


def _stopped(result: Result | None, facts: dict[str, Any]) -> Ended:
    if result is not None and result.reason == LOCKED:
        return Ended(note("HeldByOtherRun", problem=result.message), counted=False, **facts)
    return Ended(note("Stopped"), counted=False, **facts)


def _in_its_words(result: Result) -> Note:
    return Note(result.reason, shorten(result.message))


def _nameless(reason: str, pod: str, code: int) -> Note:
    return note(reason, container=names.TRAINER_CONTAINER, pod=pod, code=code)


def _last_words(result: Result | None, message: str) -> str | None:
    return shorten(message[-LAST_WORDS:]) if message and result is None else None


def _disruption(pod: Body) -> str:
    """Why the cluster took the Pod away; empty when it did not."""
    for condition in pod.get("status", {}).get("conditions", ()):
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            return str(condition.get("reason", "DisruptionTarget"))
    return ""


def _disrupted(pod: str, detail: str, **facts: Any) -> Ended:
    return Ended(note("Disrupted", pod=pod, detail=detail), counted=False, **facts)


def _without_pod(job: str, message: str) -> Ended:
    """The Pod is gone already: what the Job controller wrote down of it has to do. Where that is no exit code, somebody
    deleted a Pod that was at work, which is no fault of the training."""
    if "DisruptionTarget" in message:
        return _disrupted("of " + job, "DisruptionTarget")
    code = re.search(r"exit code (\d+)", message)
    number = int(code[1]) if code else None
    return Ended(
        note("PodVanished", job=job, detail=message or "no details"),
        final=number in FINAL_CODES,
        counted=number not in (None, ExitCode.STOPPED),
        exit_code=number,
    )
