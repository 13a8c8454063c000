"""A started run: its stages one after another, each in attempts, until the end."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from mark_crds import names
from mark_crds.job_output import Result
from mark_crds.run import Failure, RunResult, RunStatus, StageStatus, State

from mark_operator import clock
from mark_operator.conditions import ADMITTED, Decided, Truth
from mark_operator.decision import Decision, Deletion, Suspension
from mark_operator.job_facts import (
    Done,
    Ended,
    Fact,
    Held,
    Running,
    Stopping,
    Waiting,
    ended_at,
    is_finished,
    lacking,
    pod_is_live,
    read_job,
    runs_since,
)
from mark_operator.messages import Note, note
from mark_operator.run.finish import finish
from mark_operator.run.objects import bind, owned, service
from mark_operator.run.pending import LEFT_QUEUE, Limit, pending_limit, queue_limit
from mark_operator.run.stopping import deletions
from mark_operator.run.view import View, of_run, replaced
from mark_operator.seen import Body

PREFLIGHT = "preflight"
LAST_ATTEMPT = 99  # the Job's name leaves room for two digits
PODS_NAMED = 3
# A Job that is younger is not told of for merely coming up: that would be two writes for a few seconds.
YOUNG_SECONDS = 10
# A look at a Job that was created, in case none of its events arrives.
FIRST_LOOK_SECONDS = 5
LONG_AGO = "1970-01-01T00:00:00Z"
EVALUATION = ("eval",)
# Why an attempt ended whose Job left its queue when a person suspended the run.
GAVE_WAY = "Suspended"
# Why an attempt ended that found what it needs in the hands of another run.
HELD = "HeldByOtherRun"


@dataclass(frozen=True)
class Attempt:
    """One attempt at one stage: its template in the stored plan, its number, and what the status says of it."""

    template: Body
    stage: str
    number: int
    entry: StageStatus | None
    job: str

    @property
    def noted(self) -> StageStatus | None:
        """What the status says of this very attempt, which it does once its Job was seen."""
        mine = self.entry is not None and self.entry.attempt == self.number
        return self.entry if mine and not self.waits_for_another else None

    @property
    def waits_for_another(self) -> bool:
        """Whether its last turn found what it needs in the hands of another run."""
        return self.entry is not None and _held(self.entry)

    @property
    def queue(self) -> str | None:
        queue: str | None = self.template["metadata"]["labels"].get(names.QUEUE_LABEL)
        return queue


def decide_stage(view: View, template: Body) -> Decision:
    """The next step of the stage that is not done yet."""
    attempt = _attempt(view, template)
    late = _late(view, attempt)
    if late:
        return Decision(delete=late, again_in=1)
    job = view.seen.own_jobs.get(attempt.job)
    if job is None:
        return _without_job(view, attempt)
    if attempt.entry is not None and attempt.waits_for_another and ended_at(job) == attempt.entry.finished_at:
        return _ask_again(view, attempt.entry, job)
    fact = read_job(job, view.seen.pods, view.seen.quotas)
    if not isinstance(fact, Done | Ended):
        suspension = _suspension(view, attempt, job)
        if suspension is not None:
            return suspension
    age = clock.seconds_since(job["metadata"].get("creationTimestamp", LONG_AGO), view.now)
    if 0 <= age < YOUNG_SECONDS and _comes_up(view, attempt, fact):
        return Decision(again_in=YOUNG_SECONDS - age)
    return _with_job(view, attempt, fact, job)


def _comes_up(view: View, attempt: Attempt, fact: Fact) -> bool:
    """Whether the Job does what the status leads to expect: its first Pods are on their way, or check the run."""
    if view.status.state not in ("Starting", "Running"):
        return False
    waits = isinstance(fact, Waiting) and fact.ordinary
    return waits or (isinstance(fact, Running) and attempt.stage == PREFLIGHT)


def _attempt(view: View, template: Body) -> Attempt:
    stage = template["metadata"]["labels"][names.STAGE_LABEL]
    entry = view.entry(stage)
    number = 1 if entry is None else entry.attempt + (entry.state == "Failed" and not _held(entry))
    key = view.seen.key
    return Attempt(template, stage, number, entry, names.job_name(key.kind, key.name, stage, number))


def _ask_again(view: View, entry: StageStatus, job: Body) -> Decision:
    """Another run held what this attempt needs, which may last as long as a training: the attempt begins anew under its
    number, so that no number of turns is too many."""
    wait = _left_of_pause(view, entry)
    if wait > 0 and not view.suspended:
        return Decision(again_in=wait)
    return Decision(delete=deletions([job]), again_in=1)


def _late(view: View, attempt: Attempt) -> tuple[Deletion, ...]:
    """Jobs of earlier attempts and stages that came into being after these were over, by the call of a leader of
    then."""
    others = (job for name, job in sorted(view.seen.own_jobs.items()) if name != attempt.job)
    return deletions([job for job in others if not is_finished(job)])


def _without_job(view: View, attempt: Attempt) -> Decision:
    """No Job under the attempt's name: it vanished, must wait, or is created now."""
    entry, timings = attempt.entry, view.settings.timings
    if entry is not None and entry.state in ("Pending", "Running"):
        return _end_attempt(view, attempt, _vanished(view, attempt, entry))
    if view.suspended:
        return Decision(status=view.stand("Suspended", note("Suspended", stage=attempt.stage), stage=attempt.stage))
    wait = _left_of_pause(view, entry)
    if wait > 0:
        return Decision(again_in=wait)
    hindrance = _hindrance(view, attempt)
    if hindrance is not None:
        status = view.stand("Starting", hindrance, stage=attempt.stage)
        return Decision(status=status, again_in=timings.first_retry_seconds)
    return Decision(create=_children(view, attempt), again_in=FIRST_LOOK_SECONDS)


def _vanished(view: View, attempt: Attempt, entry: StageStatus) -> Ended:
    """Why the Job of an open attempt is gone: we took it away ourselves, and said why before, or somebody else did."""
    noted = entry.failure
    if noted is not None:
        why = Note(noted.reason, noted.message)
        return Ended(why, final=noted.reason == LEFT_QUEUE, counted=noted.reason != GAVE_WAY)
    return Ended(note("JobVanished", job=attempt.job), counted=not view.suspended)


def _hindrance(view: View, attempt: Attempt) -> Note | None:
    """Why no Job may be created yet: somebody else's object of that name, or Pods that may still write to the
    workspace."""
    if attempt.job in view.seen.foreign_jobs:
        return note("NameTaken", taken=f"Job {attempt.job}")
    pods = [pod["metadata"]["name"] for pod in view.seen.pods if not of_run(pod, view.seen.uid) or pod_is_live(pod)]
    if not pods:
        return None
    more = f" and {len(pods) - PODS_NAMED} more" if len(pods) > PODS_NAMED else ""
    return note("WaitingForPods", pods=", ".join(sorted(pods)[:PODS_NAMED]) + more, stage=attempt.stage)


def _children(view: View, attempt: Attempt) -> tuple[Body, ...]:
    key, uid = view.seen.key, view.seen.uid
    job = bind(attempt.template, kind=key.kind, uid=uid, attempt=attempt.number)
    if attempt.template["spec"]["parallelism"] == 1:
        return (job,)
    meeting = service(key, attempt.template["spec"]["template"]["spec"]["subdomain"])
    return (owned(meeting, kind=key.kind, run=key.name, uid=uid), job)


def _suspension(view: View, attempt: Attempt, job: Body) -> Decision | None:
    """Bring the Job's `suspend` in line with the run's.
    Where a queue admits Jobs, the field is the queue's: the Job gives way to a new attempt."""
    if attempt.queue is not None:
        return _give_way(view, attempt, job)
    if bool(job["spec"].get("suspend")) == view.suspended:
        return None
    if view.status.state != "Suspended":
        # The state is written before the Job is held, and stays until it is let go: that tells our hold from another's.
        if not view.suspended:
            return None
        status = _under_way(view, attempt, "Suspended", note("Suspended", stage=attempt.stage))
        return Decision(status=status, again_in=0)
    return Decision(suspend=(Suspension(attempt.job, job["metadata"]["uid"], view.suspended),), again_in=1)


def _give_way(view: View, attempt: Attempt, job: Body) -> Decision | None:
    """The reason is written before the Job is deleted, so that an operator that dies in between knows it still."""
    if not view.suspended or "deletionTimestamp" in job["metadata"]:
        return None
    if attempt.noted is not None and attempt.noted.failure is not None:
        return Decision(delete=deletions([job]), again_in=1)
    why = note(GAVE_WAY, stage=attempt.stage)
    failure = Failure(reason=why.reason, message=why.message)
    status = _under_way(view, attempt, "Suspended", why, admitted="False", failure=failure)
    return Decision(status=status, again_in=0)


def _with_job(view: View, attempt: Attempt, fact: Fact, job: Body) -> Decision:
    facts = {"stage": attempt.stage, "attempt": attempt.number, "job": attempt.job}
    has_run = attempt.noted is not None and attempt.noted.state == "Running"
    match fact:
        case Done(result):
            missing = lacking(result, view.spec.get("stages", EVALUATION)) if result.adopted is not None else ""
            detail = f"it adopts work without naming its {missing}"
            ended = Ended(note("NoResult", job=attempt.job, detail=detail))
            return _end_attempt(view, attempt, ended) if missing else _done(view, attempt, result)
        case Ended():
            return _end_attempt(view, attempt, fact)
        case Running():
            silence = _silence(view, attempt, runs_since(job, view.seen.pods))
            status = _under_way(view, attempt, "Running", silence or note("Running", **facts))
        case Stopping(by_itself=True):
            # The Job says within seconds how it ended; that is worth telling, this is not.
            return Decision(again_in=view.settings.timings.active_seconds)
        case Stopping():
            state: State = "Suspended" if view.suspended else "Running" if has_run else "Starting"
            failure = attempt.noted.failure if attempt.noted else None
            status = _under_way(view, attempt, state, note("Stopping", **facts), failure=failure)
        case Waiting(detail):
            status = _under_way(view, attempt, "Starting", note("Waiting", detail=detail, **facts))
            return _bounded(view, attempt, job, status, None if has_run else pending_limit(view, job, fact))
        case Held() if view.suspended:
            status = _under_way(view, attempt, "Suspended", note("Suspended", stage=attempt.stage))
        case Held() if attempt.queue:
            status = _under_way(view, attempt, "Queued", _queued(view, attempt), admitted="False")
            return _bounded(view, attempt, job, status, queue_limit(view, job))
        case Held():
            status = _under_way(view, attempt, "Queued", note("HeldByOther", **facts))
    return Decision(status=status, again_in=view.settings.timings.active_seconds)


def _bounded(view: View, attempt: Attempt, job: Body, status: RunStatus, limit: Limit | None) -> Decision:
    """Let the Job wait for as long as it may. The reason is written before the Job is deleted, so that an operator that
    dies in between knows it still."""
    patience = view.settings.timings.active_seconds
    if limit is None or limit.seconds_left > 0:
        return Decision(status=status, again_in=min(patience, limit.seconds_left) if limit else patience)
    if attempt.noted is not None and attempt.noted.failure is not None:
        return Decision(delete=deletions([job]), again_in=1)
    failure = Failure(reason=limit.why.reason, message=limit.why.message)
    state: State = "Queued" if limit.why.reason == LEFT_QUEUE else "Starting"
    return Decision(status=_under_way(view, attempt, state, limit.why, failure=failure), again_in=0)


def _queued(view: View, attempt: Attempt) -> Note:
    """Not admitted yet, or not any more: the condition Admitted remembers which."""
    old = next((item for item in view.status.conditions if item.type == ADMITTED), None)
    if attempt.noted is not None and old is not None and (old.status == "True" or old.reason == "Evicted"):
        return note("Evicted", job=attempt.job, queue=attempt.queue)
    return note("Queued", stage=attempt.stage, job=attempt.job, queue=attempt.queue)


def _silence(view: View, attempt: Attempt, runs_since: str) -> Note | None:
    """That the trainer has fallen silent; None for one that speaks, or that never told its progress in this run. What
    it said before its Pods began says nothing of them: they may have waited or been held for long."""
    progress, limit = view.status.progress, view.settings.timings.no_progress_seconds
    if progress is None:
        return None
    said = progress.updated if progress.stage == attempt.stage else ""
    last = max(said, runs_since)
    if not last or clock.seconds_since(last, view.now) <= limit:
        return None
    return note("NoProgress", stage=attempt.stage, job=attempt.job, since=last)


def _under_way(
    view: View, attempt: Attempt, state: State, why: Note, *, admitted: Truth = "True", failure: Failure | None = None
) -> RunStatus:
    """The status of a run whose newest attempt has a Job. An attempt is noted only after its Job was seen."""
    entry = _noted(view, attempt, state="Running" if state == "Running" else "Pending", failure=failure)
    stages = replaced(view.status.stages, entry)
    return view.stand(state, why, more=_admission(attempt, admitted, why), stages=stages, stage=attempt.stage)


def _admission(attempt: Attempt, truth: Truth, why: Note) -> Decided:
    """The condition Admitted, for a Job that a queue admits."""
    if attempt.queue is None:
        return ()
    return ((ADMITTED, truth, note("Admitted", job=attempt.job, queue=attempt.queue) if truth == "True" else why),)


def _noted(view: View, attempt: Attempt, **facts: Any) -> StageStatus:
    """The status of a stage at this attempt; what it remembers of earlier ones is their failures and its start."""
    old = attempt.entry
    created = view.seen.own_jobs.get(attempt.job, {}).get("metadata", {}).get("creationTimestamp", view.now_text)
    last = None if old is None else old.last_failure if old is attempt.noted else old.failure
    remembered = {
        "stage": attempt.stage,
        "job": attempt.job,
        "attempt": attempt.number,
        "counted_failures": old.counted_failures if old else 0,
        "last_failure": last,
        "started_at": old.started_at if old else created,
    }
    return StageStatus(**{**remembered, **facts})


def _end_of(view: View, attempt: Attempt) -> str:
    """When the attempt ended, which may be long before this look."""
    job = view.seen.own_jobs.get(attempt.job)
    return (ended_at(job) if job else "") or view.now_text


def _done(view: View, attempt: Attempt, result: Result) -> Decision:
    entry = _noted(
        view,
        attempt,
        state="Succeeded",
        finished_at=_end_of(view, attempt),
        artifacts=result.artifacts,
        measures=result.measures,
    )
    stages = replaced(view.status.stages, entry)
    if result.adopted is not None:
        return _adopt(view, attempt, result, stages)
    state: State = "Running"
    why = note("StageDone", stage=attempt.stage)
    if attempt.stage == PREFLIGHT:
        # Not worth an Event of its own: the first stage that works follows at once.
        state = "Starting"
        why = note("Starting", stage=attempt.stage, attempt=attempt.number, detail="passed; the next stage follows")
    # A queue may have admitted the Job, and it may have ended, while nobody looked.
    more = _admission(attempt, "True", why)
    return Decision(status=view.stand(state, why, stages=stages, stage=attempt.stage, more=more), again_in=0)


def _adopt(view: View, attempt: Attempt, result: Result, stages: tuple[StageStatus, ...]) -> Decision:
    assert result.adopted is not None
    why = note("Adopted", uid=result.adopted.run_uid, finished=result.adopted.finished)
    found = RunResult(artifacts=result.artifacts, measures=result.measures, adopted_run=result.adopted.run_uid)
    return finish(view, "Adopted", why, result=found, stages=stages, more=_admission(attempt, "True", why))


def _end_attempt(view: View, attempt: Attempt, ended: Ended) -> Decision:
    """Note a failed attempt; then another one, or the end of the run."""
    counted = (attempt.entry.counted_failures if attempt.entry else 0) + ended.counted
    failure = Failure(
        reason=ended.why.reason,
        message=ended.why.message,
        container=ended.container,
        exit_code=ended.exit_code,
        last_words=ended.last_words,
    )
    entry = _noted(
        view,
        attempt,
        state="Failed",
        counted_failures=counted,
        finished_at=_end_of(view, attempt),
        failure=failure,
    )
    stages = replaced(view.status.stages, entry)
    more = _admission(attempt, "False", ended.why)
    if ended.final or counted >= int(view.spec["maxAttempts"]):
        return view.fail(ended.why, stages=stages, stage=attempt.stage, more=more)
    if attempt.number >= LAST_ATTEMPT:
        why = note("TooManyAttempts", stage=attempt.stage, attempts=attempt.number, problem=ended.why.message)
        return view.fail(why, stages=stages, stage=attempt.stage, more=more)
    if ended.why.reason == GAVE_WAY:
        return _gave_way(view, attempt, stages)
    pause = _pause(view, entry)
    if _held(entry):
        status = view.stand("Queued", ended.why, stages=stages, stage=attempt.stage, more=more)
        return Decision(status=status, again_in=pause)
    at = clock.text_of(view.now + timedelta(seconds=pause))
    why = note(
        "RetryLater", stage=attempt.stage, attempt=attempt.number, problem=ended.why.message.rstrip(".") + ".", at=at
    )
    status = view.stand("Starting", why, stages=stages, stage=attempt.stage, more=more)
    return Decision(status=status, again_in=pause)


def _gave_way(view: View, attempt: Attempt, stages: tuple[StageStatus, ...]) -> Decision:
    """A run that left its queue because a person suspended it: nothing failed."""
    if view.suspended:
        why = note(GAVE_WAY, stage=attempt.stage)
        return Decision(status=view.stand("Suspended", why, stages=stages, stage=attempt.stage), again_in=0)
    detail = "the run was suspended and goes on"
    why = note("Starting", stage=attempt.stage, attempt=attempt.number + 1, detail=detail)
    return Decision(status=view.stand("Starting", why, stages=stages, stage=attempt.stage), again_in=0)


def _left_of_pause(view: View, entry: StageStatus | None) -> float:
    if entry is None or entry.finished_at is None:
        return 0.0
    return _pause(view, entry) - clock.seconds_since(entry.finished_at, view.now)


def _pause(view: View, entry: StageStatus) -> float:
    """Seconds before the next attempt; they double with each failure that counted."""
    timings = view.settings.timings
    if entry.failure is not None and entry.failure.reason == GAVE_WAY:
        return 0.0
    if _held(entry):
        return timings.longest_retry_seconds
    doubled: int = timings.first_retry_seconds * 2 ** max(0, entry.counted_failures - 1)
    return min(doubled, timings.longest_retry_seconds)


def _held(entry: StageStatus) -> bool:
    """Whether the attempt ended only because another run holds the workspace, which may last as long as a training."""
    return entry.state == "Failed" and entry.failure is not None and entry.failure.reason == HELD
