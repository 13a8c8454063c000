"""The rules for a run, in reading order; the first that answers wins."""

from dataclasses import replace

from mark_crds import names
from mark_crds.run import RunResult, RunStatus, StageStatus

from mark_operator import clock
from mark_operator.conditions import ADMITTED
from mark_operator.decision import Decision, Event
from mark_operator.messages import Note, note
from mark_operator.run.finish import finish
from mark_operator.run.objects import owned
from mark_operator.run.plan import Rendering, plan_digest, stored_jobs
from mark_operator.run.stages import decide_stage
from mark_operator.run.stopping import cancel, delete_working, deletions
from mark_operator.run.view import View, is_terminal
from mark_operator.run.waiting import decide_waiting, unusable
from mark_operator.seen import Body, Findings

# Reasons that a person should look at, though the run has not failed.
WARNINGS = frozenset(
    {
        *(
            "PrerequisiteFailed",
            "InvalidSpec",
            "PlanningFailed",
            "PlanChanged",
            "RetryLater",
            "NoProgress",
            "NameTaken",
        ),
        *(
            "Unschedulable",
            "ImageNotPulled",
            "PodNotCreated",
            "PendingTooLong",
            "QueueTooLong",
            "Evicted",
            "HeldByOther",
        ),
    }
)


def decide(view: View, rendering: Rendering | Note | None, findings: Findings | None) -> Decision:
    """What to do about a run. `rendering` is its plan as it would be made now, or why there is none; None once the plan
    is stored, or the run has ended."""
    if view.seen.being_deleted:
        return Decision()
    if is_terminal(view.status):
        return _tidy(view)
    if view.status.started_at is None:
        assert rendering is not None, "a run that has not started is planned at every look"
        if isinstance(rendering, Note):
            return unusable(view, rendering)
        return decide_waiting(view, rendering, findings)
    if not view.confirmed:
        return cancel(view)
    return _go_on(view, rendering)


def events(old: RunStatus, new: RunStatus) -> tuple[Event, ...]:
    """One Event for a new state or reason, or the same of another stage; none for anything else. That a confirmation
    was accepted says that the run starts, too."""
    return _confirmation(old, new) or _news(old, new)


def _confirmation(old: RunStatus, new: RunStatus) -> tuple[Event, ...]:
    """Who confirmed which plan, for as long as the cluster keeps Events."""
    accepted = next((item for item in new.conditions if item.type == "Confirmed" and item.status == "True"), None)
    if accepted is None or new.confirmation is None or old.confirmation is not None:
        return ()
    return (Event("Normal", "Confirmed", accepted.message),)


def _news(old: RunStatus, new: RunStatus) -> tuple[Event, ...]:
    before, after = _headline(old), _headline(new)
    same = old.state == new.state and old.stage in (None, new.stage)
    if after is None or (same and before is not None and before.reason == after.reason):
        return ()
    bad = new.state == "Failed" or after.reason in WARNINGS
    return (Event("Warning" if bad else "Normal", after.reason, after.message),)


def _headline(status: RunStatus) -> Note | None:
    found = next((item for item in status.conditions if item.type == "Progressing"), None)
    return Note(found.reason, found.message) if found else None


def _go_on(view: View, rendering: Rendering | Note | None) -> Decision:
    """A started run: from the stored plan alone."""
    name = names.plan_name(view.seen.key.kind, view.seen.key.name)
    stored, confirmation = view.seen.stored_plan, view.status.confirmation
    if confirmation is None:
        return _stop(view, note("PlanLost", name=name))
    if view.seen.foreign_plan:
        status = view.stand("Starting", note("NameTaken", taken=f"ConfigMap {name}"))
        return Decision(status=status, again_in=view.settings.timings.first_retry_seconds)
    if stored is None:
        if not isinstance(rendering, Rendering) or rendering.hash != confirmation.plan_hash:
            return _stop(view, note("PlanLost", name=name))
        return Decision(create=(_plan_object(view, rendering, name),), again_in=0)
    if plan_digest(stored.get("data", {})) != confirmation.plan_hash:
        return _stop(view, note("PlanTampered", name=name))
    jobs = stored_jobs(stored)
    done = {entry.stage for entry in view.status.stages if entry.state == "Succeeded"}
    for job in jobs:
        if job["metadata"]["labels"][names.STAGE_LABEL] not in done:
            decision = decide_stage(view, job)
            if decision.status is not None and _all_done(decision.status.stages, jobs):
                # The last stage's end and the run's are one write.
                return _succeed(view, decision.status)
            return decision
    return _succeed(view, view.status)


def _all_done(stages: tuple[StageStatus, ...], jobs: tuple[Body, ...]) -> bool:
    return len(stages) == len(jobs) and all(entry.state == "Succeeded" for entry in stages)


def _stop(view: View, why: Note) -> Decision:
    return replace(view.fail(why), delete=delete_working(view))


def _plan_object(view: View, rendering: Rendering, name: str) -> Body:
    key = view.seen.key
    authority = {names.CA_KEY: view.seen.authority} if view.seen.authority else {}
    body = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": name,
            "namespace": key.namespace,
            "labels": {names.KIND_LABEL: key.kind, names.RUN_LABEL: key.name, names.RUN_UID_LABEL: view.seen.uid},
        },
        "immutable": True,
        "data": {**rendering.data, **authority},
    }
    return owned(body, kind=key.kind, run=key.name, uid=view.seen.uid)


def _succeed(view: View, status: RunStatus) -> Decision:
    """The end of a run whose stages are all done in this status."""
    stages = status.stages
    admission = tuple(
        (item.type, item.status, Note(item.reason, item.message)) for item in status.conditions if item.type == ADMITTED
    )
    result = RunResult(
        artifacts=tuple(artifact for entry in stages for artifact in entry.artifacts)[:12],
        measures=stages[-1].measures,
    )
    why = note("Succeeded", count=len(stages))
    return finish(view, "Succeeded", why, result=result, stages=stages, more=admission)


def _tidy(view: View) -> Decision:
    """After the end: keep up with the generation, and delete the Jobs when their time is over. The end itself never
    changes."""
    status = view.status if view.status.observed_generation == view.seen.generation else _follow(view)
    seconds = view.spec.get("ttlSecondsAfterFinished")
    finished = view.status.finished_at
    if seconds is None or finished is None or not view.seen.own_jobs:
        return Decision(status=status)
    left = seconds - clock.seconds_since(finished, view.now)
    if left > 0:
        return Decision(status=status, again_in=left)
    return Decision(status=status, delete=deletions(list(view.seen.own_jobs.values())))


def _follow(view: View) -> RunStatus:
    generation = view.seen.generation
    conditions = tuple(item.model_copy(update={"observed_generation": generation}) for item in view.status.conditions)
    return view.status.model_copy(update={"observed_generation": generation, "conditions": conditions})
