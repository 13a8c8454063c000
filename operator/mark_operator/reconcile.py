"""One pass over one run: see, decide, act. The same function serves every event, every restart and every look by the
clock."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from mark_crds import names
from mark_crds.run import RunStatus

from mark_operator import clock, planning
from mark_operator.cluster import FROM_THE_PAST, ApiError, Cluster
from mark_operator.decision import Decision, Deletion, Event, ModelWrite
from mark_operator.findings import Questions
from mark_operator.health import Health
from mark_operator.job_facts import belongs, ended_at, is_finished, lacks_pods
from mark_operator.messages import Note, note
from mark_operator.registry.decide import keep_current
from mark_operator.run import decide as rules
from mark_operator.run.plan import Rendering
from mark_operator.run.usage import ended_attempts, gpu_seconds
from mark_operator.run.view import View, is_terminal, status_of
from mark_operator.run.waiting import unusable
from mark_operator.seen import TOLD_BY_TRAINERS, Body, Findings, RunKey, Seen, essence, owned_by
from mark_operator.settings import Settings

log = logging.getLogger(__name__)

WORKING = ("Pending", "Running")
# Until the look that finds a run gone which was there a moment ago.
GONE_SECONDS = 1
# A run whose passes come to no end so often in a row is told of in an Event, and again when that is forgotten: the API
# server keeps it for an hour, and passes that fail come at least once a minute.
PATIENCE = 3
# Conflicts pass by themselves on a busy API server; so many, with the pauses between them, take a minute.
PATIENCE_WITH_CONFLICTS = 8
TOLD_AGAIN_AFTER = 100
# Until the look after one whose answers were older than what is known.
PAST_SECONDS = 2
# For so long after a Job's end, a list without its Pods is one from the past; then they are gone indeed.
PODS_LISTED_SECONDS = 15

# More than a run ever takes at once; a rule that never comes to rest is slowed down to one round through the queue.
LONGEST_PASS = 8


@dataclass
class Stumbles:
    """The passes over a run, one after another, that came to no end."""

    times: int = 0
    failures: int = 0
    """Those of them that ended by something else than a conflict."""
    told_at: int = -TOLD_AGAIN_AFTER
    """At which of these the run's owner was last told."""

    @property
    def too_many(self) -> bool:
        """Whether it is time to tell the run's owner."""
        last_long = self.failures >= PATIENCE or self.times >= PATIENCE_WITH_CONFLICTS
        return last_long and self.times - self.told_at >= TOLD_AGAIN_AFTER


class NameTakenError(Exception):
    """A child cannot be created: somebody else's object has its name."""

    def __init__(self, why: Note) -> None:
        super().__init__(why.message)
        self.why = why


class Reconciler:
    """Brings one run at a time a step further."""

    def __init__(
        self, cluster: Cluster, settings: Settings, now: Callable[[], datetime], authority: str | None, health: Health
    ) -> None:
        self._cluster = cluster
        self._settings = settings
        self._now = now
        self._authority = authority
        self._health = health
        self._questions = Questions(cluster)
        self._checked: dict[RunKey, datetime] = {}
        self._written: dict[RunKey, str] = {}
        self._stumbles: dict[RunKey, Stumbles] = {}

    async def look_at(self, key: RunKey) -> float | None:
        """One pass; the seconds until the next look, if there should be one without an event."""
        body = await self._cluster.get(key.kind, key.namespace, key.name)
        if body is None:
            for memory in (self._checked, self._written, self._stumbles):
                memory.pop(key, None)
            return None
        try:
            pause = await self._pass(key, body)
        except ApiError as error:
            if error.namespace_terminates:
                return None
            if error.from_the_past:
                log.warning("looked again later: %s", error, extra={"run": str(key)})
                return PAST_SECONDS
            await self._stumble(key, body, str(error), conflict=error.status == 409)
            if error.status not in (404, 409):
                raise
            return self._look_again(key, error)
        except Exception as error:
            await self._stumble(key, body, f"{type(error).__name__}: {error}")
            raise
        self._stumbles.pop(key, None)
        return pause

    async def _pass(self, key: RunKey, body: Body) -> float | None:
        if key.kind == "Model":
            await self._look_at_model(body)
            return None
        return await self._step_by_step(await self._see(key, body))

    async def _stumble(self, key: RunKey, body: Body, problem: str, *, conflict: bool = False) -> None:
        """Count one more pass that came to no end, and tell the run's owner if it was one too many."""
        stumbles = self._stumbles.setdefault(key, Stumbles())
        stumbles.times += 1
        stumbles.failures += not conflict
        if stumbles.too_many:
            stumbles.told_at = stumbles.times
            why = note("PassFailed", problem=problem)
            await self._tell(key, body, Event("Warning", why.reason, why.message))

    def _look_again(self, key: RunKey, error: ApiError) -> float:
        """The pause after a write that somebody came before, most often the progress server, or that found its object
        deleted: another look shows what stands there now. What does not pass must not turn in a circle."""
        times = self._stumbles[key].times
        if times < PATIENCE:
            return GONE_SECONDS if error.missing else 0
        pause = 2.0 ** min(times - PATIENCE, 6)
        log.warning("pass %d in a row, the next one in %.0f s: %s", times, pause, error, extra={"run": str(key)})
        return pause

    def wrote(self, key: RunKey, body: Mapping[str, Any]) -> bool:
        """Whether this is what the last pass itself left behind, so that there is nothing new to see in it."""
        return self._written.get(key, "") == str(body["metadata"].get("resourceVersion"))

    async def _step_by_step(self, seen: Seen) -> float | None:
        """Steps that follow one another at once, each on what the API server answered to the one before."""
        for _ in range(LONGEST_PASS):
            view = View(seen, self._settings, self._now())
            decision = await self._decide(view)
            try:
                changed = await self._act(view, decision)
            except NameTakenError as error:
                # Nobody tells of an object that is not the run's own; it is asked for as seldom as the run is.
                await self._write_status(view, view.stand("Starting", error.why))
                return self._settings.timings.active_seconds
            if changed is None or decision.again_in != 0:
                return decision.again_in
            seen = changed
            if view.status.started_at is None and "startedAt" in changed.run.get("status", {}):
                # What a run owns comes after its start, and a name that is taken shows when a child is created. Only
                # the Pods of an earlier run of this name have to be looked for.
                seen = replace(changed, pods=await self._children("Pod", seen.key, _labels(seen.key)))
        return 0

    async def _look_at_model(self, body: Body) -> None:
        write = keep_current(body)
        if write is not None:
            await self._write_model(write, body)

    async def _see(self, key: RunKey, run: Body) -> Seen:
        status, cleans_up = run.get("status", {}), "ttlSecondsAfterFinished" in run["spec"]
        if "startedAt" not in status or ("finishedAt" in status and not cleans_up):
            return Seen(key, run, models=await self._models(key, run), authority=self._authority)
        labels = _labels(key)
        if "finishedAt" in status:
            return Seen(key, run, jobs=await self._children("Job", key, labels))
        plan_name = names.plan_name(key.kind, key.name)
        jobs, pods, plan, models = await asyncio.gather(
            self._children("Job", key, labels),
            self._children("Pod", key, labels),
            self._cluster.get("ConfigMap", key.namespace, plan_name),
            self._models(key, run),
        )
        lacking = _lacking(run, jobs)
        found = [await self._cluster.get("Job", key.namespace, name) for name in lacking]
        if plan is None or None in found:
            await self._ensure_there(key, run)
        jobs = (*jobs, *(job for job in found if job is not None))
        for job in _just_ended(run, jobs, self._now()):
            if not any(belongs(pod, job) for pod in pods):
                name = job["metadata"]["name"]
                raise ApiError(503, FROM_THE_PAST, f"no Pod of Job {name} is listed, which has just ended")
        quotas = await self._questions.quotas(key.namespace) if self._lack_pods(jobs, pods) else ()
        return Seen(key, run, plan, jobs, pods, models, quotas, self._authority)

    def _lack_pods(self, jobs: tuple[Body, ...], pods: tuple[Body, ...]) -> bool:
        return any(lacks_pods(job, pods, self._now()) for job in jobs)

    async def _ensure_there(self, key: RunKey, run: Body) -> None:
        """Raise if the run is gone by now: what it owned went with it, and must not be made again."""
        now = await self._cluster.get(key.kind, key.namespace, key.name)
        if now is None or now["metadata"]["uid"] != run["metadata"]["uid"]:
            raise ApiError(404, "NotFound", f"{key} is gone")

    async def _children(self, kind: str, key: RunKey, labels: dict[str, str]) -> tuple[Body, ...]:
        return tuple([item async for item in self._cluster.list_all(kind, key.namespace, labels)])

    async def _models(self, key: RunKey, run: Body) -> tuple[Body, ...]:
        """The registry entries that the run may read or write."""
        if is_terminal(status_of(run)):
            return ()
        if planning.needs_models(key.kind, run["spec"]):
            return await self._children("Model", key, {})
        name = run["spec"].get("output", {}).get("model")
        found = await self._cluster.get("Model", key.namespace, name) if name else None
        return (found,) if found else ()

    async def _decide(self, view: View) -> Decision:
        """The decision; a spec that makes the planner raise gets a condition instead of being tried for ever."""
        seen, started = view.seen, view.status.started_at is not None
        try:
            rendering = None if _is_planned(view) else planning.plan(seen.key, view.spec, view.settings, seen.models)
            findings = None
            if isinstance(rendering, Rendering) and not started:
                findings = await self._findings(view, rendering)
            return rules.decide(view, rendering, findings)
        except ApiError:
            raise
        except Exception as error:
            if started:
                raise
            log.exception("planning failed", extra={"run": str(seen.key)})
            return unusable(view, note("PlanningFailed", problem=f"{type(error).__name__}: {error}"))

    async def _findings(self, view: View, rendering: Rendering) -> Findings | None:
        """Fresh answers to the plan's questions; None while those in the status are new enough."""
        key, old = view.seen.key, view.status.plan
        known = (
            old is not None and old.hash == rendering.hash and view.status.observed_generation == view.seen.generation
        )
        timings = view.settings.timings
        period = timings.relist_seconds if view.status.state == "PlanReady" else timings.check_seconds
        # A restarted operator takes over what the former one found, instead of asking about all runs at once.
        last = self._checked.setdefault(key, view.now)
        if known and not view.confirmed and (view.now - last).total_seconds() < period * 0.9:
            return None
        self._checked[key] = view.now
        return await self._questions.look(rendering, view.seen.uid, confirmed=view.confirmed)

    async def _act(self, view: View, decision: Decision) -> Seen | None:
        """Carry the decision out; the run as it is then known to be, or None when nothing of it was changed."""
        seen, status = view.seen, decision.status
        changed: Seen | None = None
        for body in decision.create:
            child = await self._create(body, seen)
            if body["kind"] == "ConfigMap":
                seen = changed = replace(seen, plan_object=child)
        for deletion in decision.delete:
            await self._cluster.delete(deletion.kind, seen.key.namespace, deletion.name, deletion.uid)
            self._count_deleted(view, deletion)
            log.info("deleted %s %s", deletion.kind, deletion.name, extra={"run": str(seen.key)})
        for suspension in decision.suspend:
            await self._cluster.set_suspend(seen.key.namespace, suspension.job, suspension.uid, suspension.suspend)
            log.info("set suspend=%s on %s", suspension.suspend, suspension.job, extra={"run": str(seen.key)})
        if decision.model is not None:
            existing = next((body for body in seen.models if body["metadata"]["name"] == decision.model.name), None)
            await self._write_model(decision.model, existing)
        run = await self._write_status(view, status) if status is not None else None
        return replace(seen, run=run) if run is not None else changed

    async def _create(self, body: Body, seen: Seen) -> Body:
        """Create a child once. Its name being taken is fine if it belongs to this very run."""
        kind, name = body["kind"], body["metadata"]["name"]
        try:
            created = await self._cluster.create(body)
        except ApiError as error:
            if not error.exists_already:
                raise
            found = await self._cluster.get(kind, seen.key.namespace, name)
            if found is None or not owned_by(found, seen.uid):
                raise NameTakenError(note("NameTaken", taken=f"{kind} {name}")) from error
            return found
        log.info("created %s %s", kind, name, extra={"run": str(seen.key)})
        return created

    async def _write_status(self, view: View, status: RunStatus) -> Body | None:
        """Write the status if it differs, on exactly the object that was read; then say so in Events. The run as it was
        written, or None when there was nothing to write."""
        seen, old = view.seen, view.status
        if status == old:
            return None
        metadata = seen.run["metadata"]
        body = {
            "apiVersion": names.API_VERSION,
            "kind": seen.key.kind,
            "metadata": {
                "name": seen.key.name,
                "namespace": seen.key.namespace,
                "resourceVersion": metadata["resourceVersion"],
            },
            "status": {field: value for field, value in status.to_dict().items() if field not in TOLD_BY_TRAINERS},
        }
        written = await self._apply_status(seen, body)
        self._written[seen.key] = written["metadata"]["resourceVersion"]
        self._count(view, status)
        events = rules.events(old, status)
        for event in events:
            log.info("%s: %s", event.reason, event.message, extra={"run": str(seen.key)})
        await asyncio.gather(*(self._tell(seen.key, seen.run, event) for event in events))
        return written

    async def _apply_status(self, seen: Seen, body: Body) -> Body:
        """Write on the run as it was read. What its trainer told meanwhile is no reason to decide anew: on a busy API
        server the next word would come before that decision, too."""
        try:
            return await self._cluster.apply_status(body)
        except ApiError as error:
            now = await self._cluster.get(*seen.key) if error.reason == "Conflict" else None
            if now is None or essence(now) != essence(seen.run):
                raise
        version = now["metadata"]["resourceVersion"]
        return await self._cluster.apply_status({**body, "metadata": {**body["metadata"], "resourceVersion": version}})

    def _count(self, view: View, new: RunStatus) -> None:
        """What the metrics tell of a change."""
        old, kind = view.status, view.seen.key.kind
        self._health.moved(kind, old.state, new.state)
        for usage in ended_attempts(old, new, view.seen.own_jobs, view.now):
            self._health.attempt_ended(kind, usage.stage, usage.outcome)
            self._health.held_gpus(kind, usage.stage, usage.gpu_seconds)

    def _count_deleted(self, view: View, deletion: Deletion) -> None:
        job = view.seen.own_jobs.get(deletion.name, {})
        stage = job.get("metadata", {}).get("labels", {}).get(names.STAGE_LABEL)
        if stage is not None and not is_finished(job):  # a Job that a stranger gave to the run has no stage
            self._health.held_gpus(view.seen.key.kind, stage, gpu_seconds(job, view.now))

    async def _tell(self, key: RunKey, run: Body, event: Event) -> None:
        """An Event for people. Losing one loses no fact, so a failure is only logged."""
        try:
            await self._cluster.create(_event_object(key, run, event, self._now()))
        except ApiError as error:
            log.warning("could not write the event %s: %s", event.reason, error, extra={"run": str(key)})

    async def _write_model(self, write: ModelWrite, existing: Body | None) -> None:
        """Create the registry entry if it is missing, and write its status on exactly the object that was read."""
        head = {"apiVersion": names.API_VERSION, "kind": "Model"}
        metadata = {"name": write.name, "namespace": write.namespace}
        if existing is None:
            existing = await self._cluster.create({**head, "metadata": metadata, "spec": write.spec})
        version = {"resourceVersion": existing["metadata"]["resourceVersion"]}
        await self._cluster.apply_status(
            {**head, "metadata": {**metadata, **version}, "status": write.status.to_dict()}
        )
        log.info("wrote Model %s", write.name)


def _labels(key: RunKey) -> dict[str, str]:
    """The labels of every child of a run of this name."""
    return {names.KIND_LABEL: key.kind, names.RUN_LABEL: key.name}


def _at_work(run: Body) -> list[str]:
    """Jobs that work by the status."""
    return [stage["job"] for stage in run["status"].get("stages", ()) if stage["state"] in WORKING]


def _lacking(run: Body, jobs: tuple[Body, ...]) -> list[str]:
    """Jobs at work that the list lacks: a list may be from the past, and a Job that counts as gone gets a successor."""
    listed = {job["metadata"]["name"] for job in jobs}
    return [name for name in _at_work(run) if name not in listed]


def _just_ended(run: Body, jobs: tuple[Body, ...], now: datetime) -> list[Body]:
    """Jobs at work that ended a moment ago. Their Pods tell how, unless the list is from the past."""
    ended = [job for job in jobs if job["metadata"]["name"] in _at_work(run) and ended_at(job)]
    return [job for job in ended if 0 <= clock.seconds_since(ended_at(job), now) < PODS_LISTED_SECONDS]


def _is_planned(view: View) -> bool:
    """Whether nothing more depends on the plan as it would be made now."""
    return is_terminal(view.status) or view.seen.stored_plan is not None


def _event_object(key: RunKey, run: Body, event: Event, now: datetime) -> Body:
    metadata = run["metadata"]
    moment = now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{key.name}.{metadata['resourceVersion']}-{event.reason.lower()}",
            "namespace": key.namespace,
        },
        "involvedObject": {
            "apiVersion": names.API_VERSION,
            "kind": key.kind,
            "name": key.name,
            "namespace": key.namespace,
            "uid": metadata["uid"],
        },
        "type": event.type,
        "reason": event.reason,
        "message": event.message,
        "firstTimestamp": clock.text_of(now),
        "lastTimestamp": clock.text_of(now),
        "eventTime": moment,
        "count": 1,
        "action": event.reason,
        "reportingComponent": "mark-operator",
        "reportingInstance": "mark-operator",
        "source": {"component": "mark-operator"},
    }
