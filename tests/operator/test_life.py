"""Whole lives of a run in a small world: random ends of Jobs, random order of looks, crashes between any two writes."""

import copy
import itertools
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mark_crds.run import RunStatus
from mark_operator import clock
from mark_operator.decision import Decision
from mark_operator.job_facts import is_finished, pod_is_live
from mark_operator.run.decide import decide, events
from mark_operator.run.view import View, is_terminal, status_of
from mark_operator.seen import RunKey, Seen
from run_builders import (
    KEY,
    NOON,
    SETTINGS,
    UID,
    Body,
    a_result,
    a_run,
    all_well,
    evaluating,
    job_with,
    pod_with,
    rendering_of,
    terminated,
    training,
)
from run_states import ODD, STATES

ON = {"dryRun": False, "confirm": True}
ENDS = ("done", "mistake", "trouble", "stopped", "mute", "deleted")


@dataclass
class World:
    """A cluster with one run in it: what the API server stores, and the hands of Job controller and kubelet."""

    run: Body
    key: RunKey = KEY
    plan: Body | None = None
    jobs: dict[str, Body] = field(default_factory=dict)
    pods: dict[str, Body] = field(default_factory=dict)
    models: dict[str, Body] = field(default_factory=dict)
    services: set[str] = field(default_factory=set)
    created: list[str] = field(default_factory=list)
    now: float = 0

    @property
    def status(self) -> RunStatus:
        return status_of(self.run)

    @property
    def active(self) -> list[Body]:
        return [job for job in self.jobs.values() if not is_finished(job)]

    def view(self) -> View:
        models = tuple(self.models.values())
        seen = Seen(
            self.key, copy.deepcopy(self.run), self.plan, tuple(self.jobs.values()), tuple(self.pods.values()), models
        )
        return View(seen, SETTINGS, NOON + timedelta(seconds=self.now))

    def decide(self) -> Decision:
        view = self.view()
        return decide(view, rendering_of(view.spec, key=self.key, models=view.seen.models), all_well())

    def look(self, writes: int = 99) -> Decision:
        """One pass of the operator, which dies after so many writes."""
        decision = self.decide()
        before = self.status
        for write in self._writes(decision)[:writes]:
            write()
        assert len(self.active) <= 1, "two Jobs of one run at once"
        assert not is_terminal(before) or self.status.state == before.state, "the end changed"
        return decision

    def live_on(self, looks: int = 60) -> RunStatus:
        """Look until the end, with every Job ending well."""
        for _ in range(looks):
            if is_terminal(self.status):
                return self.status
            decision = self.look()
            self.now += max(1.0, decision.again_in or 0)
            self.end("done")
        raise AssertionError(f"no end after {looks} looks: {self.status.state}")

    def end(self, how: str) -> None:
        """What becomes of the Job that works now."""
        for job in self.active:
            if job["spec"].get("suspend"):
                continue
            name, stage = job["metadata"]["name"], job["metadata"]["labels"]["training.mark.dev/stage"]
            if how == "deleted":
                del self.jobs[name]
                continue
            codes = {"done": 0, "mute": 0, "mistake": 64, "trouble": 70, "stopped": 75}
            message = a_result(stage) if how == "done" else ""
            phase = "Failed" if codes[how] else "Succeeded"
            self.pods[name] = pod_with(job, terminated(codes[how], message), phase)
            self.jobs[name] = job_with(job, "Failed" if codes[how] else "Complete")

    def _writes(self, decision: Decision) -> list:  # type: ignore[type-arg]
        writes = [lambda body=body: self._create(body) for body in decision.create]
        writes += [lambda name=item.name: self.jobs.pop(name, None) for item in decision.delete]
        writes += [lambda item=item: self._suspend(item.job, item.suspend) for item in decision.suspend]
        if decision.model is not None:
            writes.append(lambda: self._enter(decision))
        if decision.status is not None:
            writes.append(lambda: self.run.update(status=decision.status.to_dict()))
        return writes

    def _create(self, body: Body) -> None:
        name = body["metadata"]["name"]
        if body["kind"] == "ConfigMap":
            self.plan = body
        elif body["kind"] == "Service":
            self.services.add(name)
        elif name not in self.jobs:
            self.jobs[name] = {**body, "metadata": {**body["metadata"], "uid": f"uid-of-{name}"}}
            self.created.append(name)

    def _suspend(self, name: str, suspend: bool) -> None:
        self.jobs[name] = {**self.jobs[name], "spec": {**self.jobs[name]["spec"], "suspend": suspend}}

    def _enter(self, decision: Decision) -> None:
        write = decision.model
        assert write is not None
        metadata = {"name": write.name, "namespace": write.namespace}
        self.models[write.name] = {"metadata": metadata, "spec": write.spec, "status": write.status.to_dict()}


def confirmed(**changes: object) -> World:
    """A run that was planned, read and confirmed."""
    world = World(a_run(training(**changes)))
    world.look()
    world.run["spec"] = training(**changes, **ON)
    return world


def test_a_life_without_trouble() -> None:
    world = confirmed(stages=["ingest", "dataPrep", "lora", "eval"], output={"model": "tuned"}, resources={"nodes": 2})
    status = world.live_on()
    stages = ("preflight", "ingest", "data-prep", "lora", "eval")
    assert status.state == "Succeeded" and world.created == [f"contracts-t-{stage}-1" for stage in stages]
    assert world.services == {"t-contracts"}
    assert status.result is not None and status.result.model == "tuned"
    (version,) = world.models["tuned"]["status"]["versions"]
    assert version["planHash"] == status.plan.hash and version["evaluation"] == "eval/x"  # type: ignore[union-attr]


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from([*ENDS, "nothing"]), st.integers(0, 4), st.integers(1, 20)), max_size=30))
def test_any_order_of_ends_looks_and_crashes(story: list[tuple[str, int, int]]) -> None:
    world = confirmed(maxAttempts=3)
    for how, writes, seconds in story:
        world.look(writes)
        world.end(how) if how != "nothing" else None
        world.now += seconds
    status = world.live_on()
    assert len(world.created) == len(set(world.created)) or "deleted" in [how for how, _, _ in story]
    for stage in status.stages:
        done = [
            job for job in world.jobs.values() if job["metadata"]["labels"]["training.mark.dev/stage"] == stage.stage
        ]
        assert sum(job["status"]["conditions"][0]["type"] == "Complete" for job in done if "status" in job) <= 3
    if status.state == "Failed":
        assert status.stages[-1].failure is not None
    assert world.look().create == () and world.decide().status in (None, world.status)


@settings(max_examples=40)
@given(st.lists(st.sampled_from(["done", "suspend", "resume", "cancel", "nothing"]), max_size=20))
def test_people_may_hold_and_cancel_at_any_time(story: list[str]) -> None:
    world = confirmed()
    changes = {"suspend": {"suspend": True}, "resume": {"suspend": False}, "cancel": {"confirm": False}}
    for act in story:
        started = world.status.started_at is not None
        if act in changes and (act != "cancel" or started):
            world.run["spec"] = {**world.run["spec"], **changes[act]}
        world.look()
        world.now += 5
        if act == "done" and not world.run["spec"]["suspend"]:
            world.end("done")
    world.run["spec"] = {**world.run["spec"], "suspend": False}
    status = world.live_on()
    cancelled = not world.run["spec"]["confirm"]
    assert status.state in (("Cancelled", "Succeeded") if cancelled else ("Succeeded",))
    assert world.active == []


def test_a_suspended_run_makes_no_job() -> None:
    world = confirmed(suspend=True)
    for _ in range(5):
        world.look()
        world.now += 60
    assert world.jobs == {} and world.status.state == "Suspended"


def test_with_a_queue_a_held_job_gives_way_to_a_new_attempt() -> None:
    world = confirmed(queueName="research")
    for _ in range(4):
        world.look()
    assert world.status.state == "Queued"
    world.run["spec"]["suspend"] = True
    reasons = []
    for _ in range(4):
        world.look()
        reasons.append(next(item.reason for item in world.status.conditions if item.type == "Progressing"))
    assert world.status.state == "Suspended" and world.jobs == {}
    assert set(reasons) == {"Suspended"}, "nothing failed"
    world.run["spec"]["suspend"] = False
    world.look()
    assert world.created == ["contracts-t-preflight-1", "contracts-t-preflight-2"]
    assert world.status.stages[0].counted_failures == 0


@pytest.mark.parametrize("writes", [0, 1])
def test_a_job_that_left_its_queue_for_a_person_costs_no_attempt_whenever_the_operator_dies(writes: int) -> None:
    world = confirmed(queueName="research", maxAttempts=1)
    for _ in range(4):
        world.look()
    world.run["spec"]["suspend"] = True
    world.look()
    world.look(writes)
    world.run["spec"]["suspend"] = False
    for _ in range(4):
        world.look()
    assert world.status.state == "Queued"
    assert world.created == [f"contracts-t-preflight-{number + 1}" for number in range(writes + 1)]
    assert world.status.stages[0].counted_failures == 0


def test_a_job_that_an_old_leader_made_too_late_goes() -> None:
    world = confirmed()
    for _ in range(4):
        world.look()
    first = world.jobs["contracts-t-preflight-1"]
    world.end("trouble")
    world.look()
    world.now += 60
    world.jobs["contracts-t-preflight-1"] = {**first, "metadata": {**first["metadata"], "uid": "late"}}
    world.look()
    assert world.jobs == {}
    world.look()
    assert list(world.jobs) == ["contracts-t-preflight-2"]


def test_a_late_job_of_a_stage_that_is_done_goes() -> None:
    world = confirmed()
    for _ in range(4):
        world.look()
    done = world.jobs["contracts-t-preflight-1"]
    world.end("done")
    for _ in range(3):
        world.look()
    assert "contracts-t-data-prep-1" in world.jobs
    world.jobs["contracts-t-preflight-2"] = {**done, "metadata": {**done["metadata"], "name": "contracts-t-preflight-2"}}
    world.look()
    assert "contracts-t-preflight-2" not in world.jobs and "contracts-t-data-prep-1" in world.jobs


def test_what_another_controller_suspends_is_left_alone() -> None:
    world = confirmed()
    for _ in range(4):
        world.look()
    (name,) = world.jobs
    world._suspend(name, True)
    for _ in range(3):
        assert world.look().suspend == ()
    assert world.status.state == "Queued"


@pytest.mark.parametrize("uid", ["another", UID])
def test_no_job_beside_pods_that_may_still_write(uid: str) -> None:
    world = confirmed()
    (preflight, *_) = rendering_of(training()).jobs
    pod = pod_with(preflight, {"running": {}})
    pod["metadata"]["labels"] = {**pod["metadata"]["labels"], "training.mark.dev/run-uid": uid}
    world.pods["old"] = pod
    for _ in range(5):
        world.look()
    assert world.jobs == {} and world.status.conditions[2].reason == "WaitingForPods"
    assert pod_is_live(pod)
    del world.pods["old"]
    world.look()
    assert list(world.jobs) == ["contracts-t-preflight-1"]


def test_a_job_of_that_name_that_is_not_ours_is_waited_for() -> None:
    world = confirmed()
    world.jobs["contracts-t-preflight-1"] = {"metadata": {"name": "contracts-t-preflight-1", "uid": "x"}, "spec": {}}
    for _ in range(5):
        decision = world.look()
    assert decision.create == () and world.status.conditions[2].reason == "NameTaken"


def test_a_lost_plan_is_made_again_only_if_it_is_the_same() -> None:
    world = confirmed()
    for _ in range(4):
        world.look()
    world.plan = None
    world.look()
    assert world.plan is not None
    world.plan = None
    world.run["spec"]["lora"]["rank"] = 99  # a restore that brought back another spec
    world.look()
    assert world.status.state == "Failed" and world.status.conditions[2].reason == "PlanLost"


def test_a_run_that_fails_by_its_plan_leaves_no_stage_open_and_no_job() -> None:
    world = confirmed()
    for _ in range(4):
        world.look()
    (name,) = world.jobs
    world.pods[name] = pod_with(world.jobs[name], {"running": {}})
    world.look()
    assert [entry.state for entry in world.status.stages] == ["Running"] and world.plan is not None
    world.plan = {**world.plan, "data": {**world.plan["data"], "jobs.json": "[]"}}
    world.look()
    assert world.status.state == "Failed" and world.status.conditions[2].reason == "PlanTampered"
    assert [entry.state for entry in world.status.stages] == ["Cancelled"] and world.status.stages[0].finished_at
    assert world.jobs == {}


def test_pauses_grow_and_come_from_the_status_alone() -> None:
    world = confirmed(maxAttempts=5)
    pauses = []
    for _ in range(40):
        decision = world.look()
        if decision.again_in and world.status.stages and world.status.stages[0].state == "Failed":
            pauses.append(decision.again_in)
            world.now += decision.again_in
        world.end("trouble")
        world.now += 1
    assert [pause for pause in pauses if pause >= 10] == [10, 20, 40, 80]
    assert world.status.state == "Failed" and world.status.stages[0].counted_failures == 5


def test_stops_are_not_counted_but_not_endless() -> None:
    world = confirmed(maxAttempts=1)
    for _ in range(400):
        world.look()
        world.end("stopped")
        world.now += 60
    assert world.status.state == "Failed" and world.status.conditions[2].reason == "TooManyAttempts"
    assert len(world.created) == 99


def test_after_the_end_children_go_when_their_time_is_over() -> None:
    world = confirmed(ttlSecondsAfterFinished=100)
    finished = world.live_on()
    again_in = world.look().again_in
    assert again_in is not None and 0 < again_in <= 100, "nothing else would bring the operator back"
    at = clock.seconds_since(str(finished.finished_at), NOON)
    world.now = -at + 99
    world.look()
    assert len(world.jobs) == 3
    world.now = -at + 101
    world.look()
    assert world.jobs == {} and world.status == finished


def test_a_run_that_is_being_deleted_is_left_alone() -> None:
    world = confirmed()
    world.run["metadata"]["deletionTimestamp"] = "2026-01-31T12:00:00Z"
    assert world.look() == Decision()


@pytest.mark.parametrize(
    ("stages", "entered"), [(["dataPrep", "lora"], "lora/x"), (["dataPrep", "lora", "reward", "ppo"], "ppo/x")]
)
def test_the_version_that_is_entered_is_the_newest_adapter(stages: list[str], entered: str) -> None:
    rlhf = {"enabled": True, "reward": {"epochs": 1}, "ppo": {"steps": 1}}
    world = confirmed(stages=stages, rlhf=rlhf, output={"model": "tuned"})
    world.live_on()
    (version,) = world.models["tuned"]["status"]["versions"]
    assert version["path"] == entered


@pytest.mark.parametrize(("value", "passed"), [("0.41", True), ("0.39", False), (None, False)])
def test_an_evaluation_decides_about_a_version(value: str | None, passed: bool) -> None:
    tuned = confirmed(output={"model": "tuned"})
    tuned.live_on()
    criterion = {"metric": "f1", "condition": "retrieved", "minimum": "0.40"}
    key = RunKey("EvalRun", KEY.namespace, "check")
    spec = {"model": {"name": "tuned"}, "pass": [criterion]}
    world = World(a_run(evaluating(**spec), key=key), key, models=tuned.models)
    world.look()
    world.run["spec"] = evaluating(**spec, **ON)
    measures = [{"name": "tuned.retrieved.f1", "value": value}] if value else []
    while not is_terminal(world.status):
        world.look()
        world.now += 1
        for job in world.active:
            stage = job["metadata"]["labels"]["training.mark.dev/stage"]
            name = job["metadata"]["name"]
            world.pods[name] = pod_with(job, terminated(0, a_result(stage, measures=measures)), "Succeeded")
            world.jobs[name] = job_with(job, "Complete")
    assert world.status.result is not None and world.status.result.passed is passed
    status = world.models["tuned"]["status"]
    assert status["versions"][0]["passed"] is passed and bool(status["current"]) is passed


def test_events_tell_changes_and_only_changes() -> None:
    world = confirmed()
    before = world.status
    world.look()
    (accepted,) = events(before, world.status)
    assert accepted.reason == "Confirmed" and accepted.type == "Normal" and world.status.plan is not None
    assert world.status.plan.hash in accepted.message
    assert events(world.status, world.status) == ()


def test_each_stage_that_is_done_is_told_of_also_when_nobody_saw_it_run() -> None:
    world = confirmed(stages=["ingest", "dataPrep", "lora"])
    told = []
    for _ in range(30):
        before = world.status
        world.look()
        told += [event.message for event in events(before, world.status) if event.reason == "StageDone"]
        world.now += 1
        world.end("done")
    assert world.status.state == "Succeeded"
    assert [message.split()[1] for message in told] == ["ingest", "dataPrep"], "of the last one, Succeeded tells"


def test_work_that_was_done_unseen_was_admitted_by_its_queue() -> None:
    world = confirmed(queueName="research", stages=["dataPrep"])
    for _ in range(10):
        world.look()
        if world.active and world.status.state == "Queued":
            for job in world.active:
                job["spec"]["suspend"] = False
            world.end("done")
    assert world.status.state == "Succeeded"
    assert next(item.status for item in world.status.conditions if item.type == "Admitted") == "True"


WAITS_FOR_AN_IMAGE = {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}


def test_a_job_that_comes_up_is_told_of_once_it_works_or_has_trouble() -> None:
    world = confirmed()
    for _ in range(4):
        world.look()
    (name,) = world.jobs
    world.jobs[name]["metadata"]["creationTimestamp"] = clock.text_of(NOON)
    world.now = 3
    assert world.look() == Decision(again_in=7), "its Pod is on the way"
    world.pods[name] = pod_with(world.jobs[name], {"running": {}})
    assert world.look() == Decision(again_in=7), "a preflight works for seconds"
    world.pods[name] = pod_with(world.jobs[name], WAITS_FOR_AN_IMAGE, "Pending")
    assert "no such image" in world.look().status.conditions[2].message  # type: ignore[union-attr]
    del world.pods[name]
    world.now = 10
    assert world.look().status.conditions[2].reason == "Waiting"  # type: ignore[union-attr]
    world.now = -3600  # the API server's clock is ahead of ours
    assert world.status.stages[0].state == "Pending" and world.look().again_in == SETTINGS.timings.active_seconds


def test_the_end_of_the_last_stage_is_the_end_of_the_run() -> None:
    world = confirmed()
    while not is_terminal(world.status):
        before = world.status
        world.look()
        world.end("done")
    assert [entry.state for entry in before.stages] == ["Succeeded", "Succeeded"]
    assert [entry.state for entry in world.status.stages] == ["Succeeded"] * 3


def test_a_trainer_that_falls_silent_is_reported() -> None:
    world = confirmed()
    for _ in range(4):
        world.look()
    (name,) = world.jobs
    world.pods[name] = pod_with(world.jobs[name], {"running": {}})
    world.look()
    told = clock.text_of(NOON + timedelta(seconds=world.now))
    world.run["status"]["progress"] = {"stage": "preflight", "percent": 5, "updated": told}
    world.now += 1700
    world.look()
    assert {item.type: item.status for item in world.status.conditions}["Progressing"] == "True"
    world.now += 200
    world.look()
    conditions = {item.type: item for item in world.status.conditions}
    assert (conditions["Progressing"].status, conditions["Progressing"].reason) == ("False", "NoProgress")
    assert f"since {told}" in conditions["Progressing"].message
    assert conditions["Ready"].status == "True" and world.status.state == "Running"
    for _ in range(5):
        world.now += 120
        assert world.decide().status == world.status, "nothing is written while nothing changes"


def test_a_trainer_that_was_held_or_waited_for_long_has_not_fallen_silent() -> None:
    world = confirmed()
    for _ in range(4):
        world.look()
    (name,) = world.jobs
    told = clock.text_of(NOON + timedelta(seconds=world.now))
    world.run["status"]["progress"] = {"stage": "preflight", "percent": 5, "updated": told}
    world.now += 30_000
    began = clock.text_of(NOON + timedelta(seconds=world.now))
    world.pods[name] = pod_with(world.jobs[name], {"running": {"startedAt": began}})
    assert progressing(world) == "Running"
    world.now += 1900
    assert progressing(world) == "NoProgress"


def test_a_trainer_that_hangs_before_its_first_word_has_fallen_silent() -> None:
    world = confirmed()
    for _ in range(4):
        world.look()
    (name,) = world.jobs
    began = clock.text_of(NOON + timedelta(seconds=world.now))
    world.pods[name] = pod_with(world.jobs[name], {"running": {"startedAt": began}})
    world.now += 1900
    assert progressing(world) == "Running", "an image that never tells its progress may work for long"
    world.run["status"]["progress"] = {"stage": "ingest", "percent": 100, "updated": began}
    assert progressing(world) == "NoProgress"


def progressing(world: World) -> str:
    world.look()
    return next(item.reason for item in world.status.conditions if item.type == "Progressing")


def pending(world: World, **changes: Any) -> str:
    """The preflight Job has started, and its Pod waits; the Job's name."""
    for _ in range(4):
        world.look()
    (name,) = world.jobs
    started = clock.text_of(NOON + timedelta(seconds=world.now))
    world.jobs[name] = {**world.jobs[name], "status": {"startTime": started}}
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    world.pods[name] = pod_with(world.jobs[name], changes.get("state", waiting), "Pending")
    return name


def test_an_attempt_that_stays_pending_gives_back_what_it_holds() -> None:
    world = confirmed(pendingDeadlineSeconds=600, maxAttempts=2)
    name = pending(world)
    decision = world.look()
    assert decision.again_in == 120 and world.status.state == "Starting"
    world.now += 590
    assert 0 < (world.look().again_in or 0) <= 10 and world.jobs
    world.now += 11
    world.look(1)  # writes why, and dies
    assert list(world.jobs) == [name] and world.status.stages[0].failure is not None
    world.look()  # a restarted operator goes on
    assert world.jobs == {}
    world.look()
    (stage,) = world.status.stages
    assert stage.state == "Failed" and stage.counted_failures == 1 and stage.failure is not None
    assert stage.failure.reason == "ImageNotPulled" and "no such image" in stage.failure.message
    world.now += 60
    world.look()
    assert world.jobs == {} and world.status.conditions[2].reason == "WaitingForPods", "its Pod still exists"
    world.pods.clear()
    world.look()
    assert list(world.jobs) == ["contracts-t-preflight-2"]


def test_pods_that_run_in_time_are_left_alone() -> None:
    world = confirmed(pendingDeadlineSeconds=600)
    name = pending(world)
    world.look()
    world.now += 601
    world.look(1)
    world.pods[name] = pod_with(world.jobs[name], {"running": {}})
    world.look()
    assert world.status.state == "Running" and world.status.stages[0].failure is None and list(world.jobs) == [name]
    world.now += 9999
    world.look()
    assert list(world.jobs) == [name]


@pytest.mark.parametrize(("limit", "kept"), [(0, True), (600, False)])
def test_no_limit_lets_a_job_wait_for_ever(limit: int, kept: bool) -> None:
    world = confirmed(pendingDeadlineSeconds=limit)
    pending(world)
    for _ in range(4):
        world.now += 10_000
        world.look()
    assert (list(world.jobs) == ["contracts-t-preflight-1"]) is kept


def test_a_job_says_what_it_lacked_before_its_own_time_is_over() -> None:
    world = confirmed(activeDeadlineSeconds=1000, pendingDeadlineSeconds=3600)
    pending(world)
    world.look()
    world.now += 890
    world.look()
    assert world.jobs
    world.now += 20
    for _ in range(3):
        world.look()
    assert world.jobs == {} and world.status.stages[0].failure is not None
    failure = world.status.stages[0].failure
    assert failure.reason == "ImageNotPulled" and "900 s (nine tenths of spec.activeDeadlineSeconds)" in failure.message


def found_held(world: World) -> str:
    """The one Job ends, because another run holds what it needs; its name."""
    said = a_result("preflight", outcome="Stopped", reason="Locked", message="held by run other/run")
    (name,) = world.jobs
    world.pods = {name: pod_with(world.jobs[name], terminated(75, said), "Failed")}
    world.jobs[name] = job_with(world.jobs[name], "Failed")
    ended = clock.text_of(NOON + timedelta(seconds=world.now))
    world.jobs[name]["status"]["conditions"][0]["lastTransitionTime"] = ended
    return name


def test_what_another_run_holds_is_waited_for_without_end() -> None:
    """A training may take weeks, and a Job's name has room for 99 attempts."""
    world = confirmed(maxAttempts=1)
    for _ in range(4):
        world.look()
    for turn in range(150):
        name = found_held(world)
        world.look()
        assert world.status.state == "Queued" and world.status.stages[0].counted_failures == 0
        world.now += 300
        assert world.look().again_in == 300 and list(world.jobs) == [name], "kept for whoever reads its log"
        world.now += 301
        world.look(turn % 2)  # every second operator dies before it deletes the Job
        for _ in range(3):
            world.look()
    world.end("done")
    assert world.live_on().state == "Succeeded"
    assert set(world.created) == {"contracts-t-preflight-1", "contracts-t-data-prep-1", "contracts-t-lora-1"}


def test_a_run_that_waits_for_another_can_be_held_at_once() -> None:
    world = confirmed()
    for _ in range(4):
        world.look()
    found_held(world)
    world.look()
    world.run["spec"]["suspend"] = True
    for _ in range(3):
        world.look()
    assert world.status.state == "Suspended" and world.jobs == {}


def asked_again(world: World) -> str:
    """A run whose Job is there anew, after another run held what it needs; the Job's name."""
    for _ in range(4):
        world.look()
    found_held(world)
    world.look()
    world.now += 601
    world.look()
    world.look()
    world.pods.clear()
    (name,) = world.jobs
    assert not is_finished(world.jobs[name])
    return name


def test_a_turn_after_a_held_one_that_somebody_deletes_has_vanished() -> None:
    """What the last turn ended by says nothing of this one."""
    world = confirmed(maxAttempts=1)
    name = asked_again(world)
    world.jobs[name] = job_with(world.jobs[name], "FailureTarget")
    world.look()
    del world.jobs[name]
    world.look()
    assert world.status.state == "Failed" and condition(world, "Progressing") == ("False", "JobVanished")


def test_a_turn_after_a_held_one_that_stays_pending_says_why_though_nobody_looked_before() -> None:
    world = confirmed(maxAttempts=1, pendingDeadlineSeconds=600)
    name = asked_again(world)
    started = clock.text_of(NOON + timedelta(seconds=world.now))
    world.jobs[name] = {**world.jobs[name], "status": {"startTime": started}}
    world.pods[name] = pod_with(world.jobs[name], {"waiting": {"reason": "ImagePullBackOff"}}, "Pending")
    world.now += 700
    for _ in range(3):
        world.look()
    assert world.jobs == {}
    assert world.status.state == "Failed" and condition(world, "Progressing") == ("False", "ImageNotPulled")


def test_the_last_failure_is_kept_through_the_next_attempt() -> None:
    world = confirmed(maxAttempts=2)
    for _ in range(4):
        world.look()
    world.end("trouble")
    world.look()
    failure = world.status.stages[0].failure
    assert failure is not None and failure.exit_code == 70 and world.status.stages[0].last_failure is None
    status = world.live_on()
    assert status.state == "Succeeded" and status.stages[0].last_failure == failure
    assert status.stages[0].failure is None and status.stages[1].last_failure is None


def test_a_stage_takes_as_long_as_its_jobs_did_whoever_looks_when() -> None:
    world = confirmed()
    for _ in range(4):
        world.look()
    (name,) = world.jobs
    world.jobs[name]["metadata"]["creationTimestamp"] = clock.text_of(NOON)
    world.end("done")
    ended = clock.text_of(NOON + timedelta(minutes=5))
    world.jobs[name]["status"]["conditions"][0]["lastTransitionTime"] = ended
    world.now += 12 * 3600
    world.look()
    (stage,) = world.status.stages
    assert (stage.started_at, stage.finished_at) == (clock.text_of(NOON), ended)


def test_a_run_named_after_a_year_gets_a_service_of_a_valid_name() -> None:
    lora = rendering_of(training(resources={"nodes": 2}), key=KEY._replace(name="2026-contracts")).jobs[-1]
    assert lora["spec"]["template"]["spec"]["subdomain"] == "t-2026-contracts"


def queued(**changes: Any) -> tuple[World, str]:
    """A run whose preflight Job waits for its queue."""
    world = confirmed(queueName="research", **changes)
    for _ in range(4):
        world.look()
    (name,) = world.jobs
    created = clock.text_of(NOON + timedelta(seconds=world.now))
    world.jobs[name]["metadata"]["creationTimestamp"] = created
    return world, name


def condition(world: World, kind: str) -> tuple[str, str]:
    return next((item.status, item.reason) for item in world.status.conditions if item.type == kind)


def test_time_in_a_queue_is_not_pending_time_and_has_a_limit_of_its_own() -> None:
    world, name = queued(pendingDeadlineSeconds=60)
    world.now += 100_000
    world.look()
    assert list(world.jobs) == [name] and condition(world, "Admitted") == ("False", "Queued")
    world, name = queued(queueDeadlineSeconds=600)
    world.now += 590
    assert 0 < (world.look().again_in or 0) <= 10
    world.now += 11
    for _ in range(3):
        world.look()
    assert world.jobs == {} and world.status.state == "Failed"
    assert condition(world, "Progressing")[1] == condition(world, "Admitted")[1] == "QueueTooLong"


def test_admission_and_eviction_are_shown_and_cost_no_attempt() -> None:
    world, name = queued(maxAttempts=1)
    world._suspend(name, False)
    world.pods[name] = pod_with(world.jobs[name], {"running": {}})
    world.look()
    assert condition(world, "Admitted") == ("True", "Admitted") and world.status.state == "Running"
    world._suspend(name, True)
    world.look()
    assert condition(world, "Progressing")[1] == "Stopping", "its Pod still saves a checkpoint"
    world.pods.clear()
    for _ in range(2):
        world.look()
        assert world.status.state == "Queued" and condition(world, "Admitted") == ("False", "Evicted")
    assert condition(world, "Ready") == ("True", "Running")
    world._suspend(name, False)
    world.pods[name] = pod_with(world.jobs[name], {"running": {}})
    world.look()
    assert condition(world, "Admitted") == ("True", "Admitted")
    while not is_terminal(world.status):
        world.end("done")
        world.look()
        for job in world.active:
            world._suspend(job["metadata"]["name"], False)
        world.now += 1
    assert world.status.state == "Succeeded"
    assert all(stage.counted_failures == 0 and stage.attempt == 1 for stage in world.status.stages)


def test_a_pod_that_is_taken_back_before_it_ran_does_not_count_as_running() -> None:
    """Else the limit on pending would be lifted for good."""
    world, name = queued()
    world.pods[name] = pod_with(world.jobs[name], {}, "Pending")
    world.look()
    assert condition(world, "Progressing")[1] == "Stopping" and world.status.state == "Starting"
    assert [stage.state for stage in world.status.stages] == ["Pending"]


def test_a_new_job_waits_for_admission_it_is_not_evicted() -> None:
    world, name = queued()
    world._suspend(name, False)
    world.look()
    world.end("done")
    for _ in range(3):
        world.look()
    assert world.status.stage == "dataPrep" and condition(world, "Admitted") == ("False", "Queued")


TELLING = {**STATES, **ODD}


@pytest.mark.parametrize("kind", ["TrainingRun", "EvalRun"])
@pytest.mark.parametrize("name", TELLING)
def test_every_transition_has_its_event(name: str, kind: str) -> None:
    """On the way to each golden state: an Event whenever state or reason change, and none when they stay."""
    history = (status_of({}), *TELLING[name](kind).written)
    for old, new in itertools.pairwise(history):
        before, after = (
            next(((one.state, item.reason) for item in one.conditions if item.type == "Progressing"), None)
            for one in (old, new)
        )
        told = [event.reason for event in events(old, new)]
        if before == after or after is None:
            assert told == []
        else:
            assert told[-1:] in ([after[1]], ["Confirmed"]), "an accepted confirmation says that the run starts, too"
    assert len(history) > 1
