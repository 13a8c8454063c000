"""What a Job and its Pods mean."""

from datetime import UTC, datetime
from typing import Any

import pytest
from mark_operator.job_facts import (
    Done,
    Ended,
    Fact,
    Held,
    Running,
    Stopping,
    Waiting,
    is_finished,
    lacks_pods,
    read_job,
)
from mark_operator.run.objects import bind
from run_builders import DIGEST, KEY, UID, Body, a_result, job_with, pod_with, rendering_of, terminated, training

PREFLIGHT, DATA_PREP, LORA = (
    bind(template, kind=KEY.kind, uid=UID, attempt=1) for template in rendering_of(training()).jobs
)
UNSCHEDULABLE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no GPU left"}
LOST = {"waiting": {"reason": "ContainerStatusUnknown"}}
DISRUPTED = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}


def read(job: Body, *pods: Body) -> Fact:
    return read_job(job, pods)


def test_a_new_job_waits() -> None:
    assert read(job_with(LORA)) == Waiting("its Pod is being created", "PodNotCreated")


@pytest.mark.parametrize(
    ("state", "conditions", "wait"),
    [
        ({"waiting": {"reason": "ErrImageNeverPull", "message": "x"}}, (), ("ErrImageNeverPull: x", "ImageNotPulled")),
        ({"waiting": {"reason": "ImagePullBackOff", "message": "x"}}, (), ("ImagePullBackOff: x", "ImageNotPulled")),
        ({"waiting": {"reason": "CreateContainerConfigError", "message": "x"}}, (), ("CreateContainerConfigError: x", "PendingTooLong")),
        ({"waiting": {"reason": "ContainerCreating"}}, (), ("the container is being created", "PendingTooLong")),
        ({}, (UNSCHEDULABLE,), ("Unschedulable: no GPU left", "Unschedulable")),
        ({}, ({**UNSCHEDULABLE, "reason": "SchedulingGated", "message": "x"},), ("SchedulingGated: x", "PendingTooLong")),
    ],
)  # fmt: skip
def test_why_a_pod_waits(state: Body, conditions: tuple[Body, ...], wait: tuple[str, Any]) -> None:
    assert read(job_with(LORA), pod_with(LORA, state, "Pending", conditions=conditions)) == Waiting(*wait)


RANKS = bind(rendering_of(training(resources={"nodes": 3})).jobs[2], kind=KEY.kind, uid=UID, attempt=1)


def test_ranks_run_when_all_of_them_do() -> None:
    first, second, third = (pod_with(RANKS, {"running": {}}, index=index) for index in range(3))
    pending = pod_with(RANKS, {}, "Pending", index=2, conditions=(UNSCHEDULABLE,))
    job = job_with(RANKS)
    assert read(job, first, second, pending) == Waiting("2 of 3 Pods run; Unschedulable: no GPU left", "Unschedulable")
    assert read(job, first, second) == Waiting("2 of 3 Pods run; its Pods are being created", "PodNotCreated")
    assert read(job, first, second, third) == Running()
    assert read(job, first, second, pod_with(RANKS, terminated(70), "Failed", index=2)) == Running()


def full(**hard: str) -> Body:
    """A quota of which all is used."""
    return {"metadata": {"name": "team"}, "spec": {"hard": hard}, "status": {"hard": hard, "used": hard}}


@pytest.mark.parametrize(
    ("quotas", "made", "detail"),
    [
        ([full(pods="3")], 0, "stage lora needs 3 pods in all its Pods, but ResourceQuota team has 0 left; ask for less"),
        ([full(pods="3")], 2, "2 of 3 Pods run; stage lora needs 1 pods for 1 more of its Pods, but ResourceQuota team"),
        ([full(services="1"), full(requests_cpu="3")], 0, "its Pods are being created"),
        ([full(**{"count/jobs.batch": "1"})], 0, "its Pods are being created"),
        ([{**full(pods="3"), "spec": {"scopes": ["BestEffort"]}}], 0, "its Pods are being created"),
        ([{**full(), "status": {}}], 0, "its Pods are being created"),
    ],
)
def test_pods_that_a_quota_keeps_from_coming(quotas: list[Body], made: int, detail: str) -> None:
    pods = tuple(pod_with(RANKS, {"running": {}}, index=index) for index in range(made))
    fact = read_job(job_with(RANKS), pods, tuple(quotas))
    assert isinstance(fact, Waiting) and fact.detail.startswith(detail) and fact.cause == "PodNotCreated"
    assert fact.ordinary is detail.endswith("being created")


@pytest.mark.parametrize(
    ("status", "spec", "pods", "lacks"),
    [
        ({"startTime": "2026-01-01T00:00:00Z"}, {}, 2, True),
        ({"startTime": "2026-01-01T00:00:00Z"}, {}, 3, False),
        ({"startTime": "2026-01-01T00:00:06Z"}, {}, 0, False),
        ({}, {}, 0, False),
        ({"startTime": "2026-01-01T00:00:00Z"}, {"suspend": True}, 0, False),
        ({"startTime": "2026-01-01T00:00:00Z", "conditions": [{"type": "Failed", "status": "True"}]}, {}, 0, False),
    ],
    ids=["one-lacks", "all-there", "just-begun", "never-begun", "held", "ended"],
)
def test_when_pods_are_lacking(status: Body, spec: Body, pods: int, lacks: bool) -> None:
    job = {**job_with({**RANKS, "spec": {**RANKS["spec"], **spec}}), "status": status}
    made = tuple(pod_with(RANKS, {}, "Pending", index=index) for index in range(pods))
    assert lacks_pods(job, made, datetime(2026, 1, 1, 0, 0, 10, tzinfo=UTC)) is lacks


def test_running_needs_a_running_trainer() -> None:
    assert read(job_with(LORA), pod_with(LORA, {"running": {}})) == Running()


@pytest.mark.parametrize(("verdicts", "by_itself"), [((), True), (("FailureTarget",), False)])
def test_a_trainer_that_ended_waits_for_the_jobs_verdict(verdicts: tuple[str, ...], by_itself: bool) -> None:
    assert read(job_with(LORA, *verdicts), pod_with(LORA, terminated(70), "Failed")) == Stopping(by_itself)


def test_a_suspended_job_is_held_only_when_no_pod_works() -> None:
    job = job_with({**LORA, "spec": {**LORA["spec"], "suspend": True}})
    assert read(job) == Held()
    assert read(job, pod_with(LORA, {"running": {}})) == Stopping()


def test_pods_of_another_job_say_nothing() -> None:
    assert read(job_with(LORA), pod_with(DATA_PREP, {"running": {}})) == read(job_with(LORA))


def test_success_needs_a_result_with_its_artifact() -> None:
    fact = read(
        job_with(LORA, "SuccessCriteriaMet", "Complete"), pod_with(LORA, terminated(0, a_result("lora")), "Succeeded")
    )
    assert isinstance(fact, Done) and fact.result.artifacts[0].digest == DIGEST


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("", "no termination message"),
        ("Traceback ...", "not a Result"),
        (a_result("dataPrep"), "speaks of stage dataPrep"),
        (a_result("lora", artifacts=[]), "names no adapter"),
        (a_result("lora", artifacts=[{"kind": "adapter", "path": "x", "digest": "abc"}]), "not a Result"),
        (a_result("lora", outcome="Stopped"), "its outcome is Stopped"),
        (a_result("lora", outcome="Adopted"), "its outcome is Adopted"),
    ],
)
def test_a_success_without_a_usable_result_is_a_failure(message: Any, words: str) -> None:
    fact = read(job_with(LORA, "Complete"), pod_with(LORA, terminated(0, message), "Succeeded"))
    assert isinstance(fact, Ended) and fact.counted and not fact.final
    assert fact.why.reason == "NoResult" and words in fact.why.message


def test_only_preflight_may_adopt() -> None:
    adopted = {"runUid": "1", "finished": "2026-01-01T00:00:00Z"}
    said = terminated(0, a_result("preflight", outcome="Adopted", adopted=adopted))
    assert isinstance(read(job_with(PREFLIGHT, "Complete"), pod_with(PREFLIGHT, said, "Succeeded")), Done)


MISTAKE = a_result("lora", outcome="UserMistake", reason="NoModel", message="baseModel.path: not there")
CASES: dict[str, tuple[Body, tuple[Body, ...], tuple[str, bool, bool]]] = {
    "mistake, explained": (terminated(64, MISTAKE), (), ("NoModel", True, True)),
    "mistake, mute": (terminated(64), (), ("UserMistake", True, True)),
    "bad data": (terminated(65), (), ("BadData", True, True)),
    "machine trouble": (terminated(70, a_result("lora", outcome="MachineTrouble", reason="DiskFull")), (), ("DiskFull", False, True)),
    "stopped after a checkpoint": (terminated(75), (), ("Stopped", False, False)),
    "unknown code": (terminated(1, "Traceback"), (), ("ContainerFailed", False, True)),
    "killed by a signal": (terminated(143), (), ("ContainerFailed", False, True)),
    "out of memory": (terminated(137, reason="OOMKilled"), (), ("OutOfMemory", False, True)),
    "disrupted": (terminated(143), (DISRUPTED,), ("Disrupted", False, False)),
    "lost with its node": (LOST, (DISRUPTED,), ("Disrupted", False, False)),
    "disrupted, but a mistake first": (terminated(64, MISTAKE), (DISRUPTED,), ("NoModel", True, True)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_how_an_attempt_ends(case: str) -> None:
    state, conditions, expected = CASES[case]
    fact = read(job_with(LORA, "FailureTarget", "Failed"), pod_with(LORA, state, "Failed", conditions=conditions))
    assert isinstance(fact, Ended)
    assert (fact.why.reason, fact.final, fact.counted) == expected


def test_the_container_that_ended_first_is_the_cause() -> None:
    pods = (
        pod_with(LORA, terminated(75, at=9), "Failed", index=0),
        pod_with(LORA, terminated(65, a_result("lora", outcome="BadData", reason="Empty"), at=3), "Failed", index=1),
    )
    fact = read(job_with(LORA, "Failed"), *pods)
    assert isinstance(fact, Ended) and fact.why.reason == "Empty" and fact.final


RANKS_THAT_FAIL: dict[str, tuple[tuple[Body, bool], tuple[Body, bool], tuple[str, bool]]] = {
    "a node is lost, its peer fails": ((LOST, True), (terminated(70, at=3), False), ("Disrupted", False)),
    "a rank is evicted, its peer fails first": ((terminated(137, at=9), True), (terminated(1, at=3), False), ("Disrupted", False)),
    "bad data by a clock ahead": ((terminated(65, at=9), False), (terminated(75, at=3), False), ("BadData", True)),
    "trouble and stopped in one second": ((terminated(75), False), (terminated(70), False), ("ContainerFailed", True)),
    "no memory, its peer fails first": ((terminated(137, reason="OOMKilled", at=9), False), (terminated(1, at=3), False), ("OutOfMemory", True)),
    "two that fail": ((terminated(70, at=9), False), (terminated(71, at=3), False), ("ContainerFailed", True)),
}  # fmt: skip


@pytest.mark.parametrize("case", RANKS_THAT_FAIL)
@pytest.mark.parametrize("swapped", [False, True])
def test_the_kind_of_an_end_tells_which_rank_is_the_cause(case: str, swapped: bool) -> None:
    *ranks, expected = RANKS_THAT_FAIL[case]
    pods = [
        pod_with(LORA, state, "Failed", index=index, conditions=(DISRUPTED,) if disrupted else ())
        for index, (state, disrupted) in enumerate(ranks)
    ]
    fact = read(job_with(LORA, "Failed"), *(reversed(pods) if swapped else pods))
    assert isinstance(fact, Ended) and (fact.why.reason, fact.counted) == expected
    if case == "two that fail":
        assert fact.exit_code == 71


@pytest.mark.parametrize("reason", ["HeldByOtherRun", "PlanTampered", "Queued", "NoResult"])
def test_a_trainer_cannot_speak_for_the_operator(reason: str) -> None:
    said = a_result("lora", outcome="MachineTrouble", reason=reason)
    fact = read(job_with(LORA, "Failed"), pod_with(LORA, terminated(70, said), "Failed"))
    assert isinstance(fact, Ended) and fact.why.reason == "ContainerFailed"


@pytest.mark.parametrize("measure", [{"name": "a\x1b[2J", "value": "1"}, {"name": "a", "value": "\x1b[31m1"}])
def test_a_measure_cannot_steer_a_terminal(measure: Body) -> None:
    said = a_result("lora", measures=[measure])
    fact = read(job_with(LORA, "Complete"), pod_with(LORA, terminated(0, said), "Succeeded"))
    assert isinstance(fact, Ended) and fact.why.reason == "NoResult"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Container trainer for pod x/y failed with exit code 64 matching FailJob rule at index 0", (True, True, 64)),
        ("Container trainer for pod x/y failed with exit code 70 matching FailJob rule at index 3", (False, True, 70)),
        ("Pod x/y has condition DisruptionTarget matching FailJob rule at index 2", (False, False, None)),
        # All that is left of a Pod that was deleted at work: it saved a checkpoint, ended with 75, and was gone.
        ("Job has reached the specified backoff limit", (False, False, None)),
    ],
)
def test_a_pod_that_is_gone_leaves_what_the_job_wrote_down(
    message: str, expected: tuple[bool, bool, int | None]
) -> None:
    fact = read(job_with(LORA, "Failed", reason="PodFailurePolicy", message=message))
    assert isinstance(fact, Ended) and (fact.final, fact.counted, fact.exit_code) == expected


def test_a_deadline_is_final() -> None:
    fact = read(job_with(LORA, "Failed", reason="DeadlineExceeded"), pod_with(LORA, terminated(143), "Failed"))
    assert isinstance(fact, Ended) and fact.final and fact.why.reason == "DeadlineExceeded"


@pytest.mark.parametrize(
    ("stage", "cure"),
    [
        ("dataPrep", "Raise spec.cpuResources.memory"),
        ("lora", "Lower batchSize, raise gradientAccumulationSteps by as much (spec.lora), or raise spec.resources.memory"),
        ("reward", "Lower batchSize, raise gradientAccumulationSteps by as much (spec.rlhf.reward)"),
        ("ppo", "Lower batchSize (spec.lora), which changes no result, or raise spec.resources.memory"),
        ("eval", "Raise spec.resources.memory"),
    ],
)
def test_out_of_memory_names_the_remedy(stage: str, cure: str) -> None:
    jobs = rendering_of(training(stages=["dataPrep", "lora", "reward", "ppo", "eval"])).jobs
    template = next(job for job in jobs if job["metadata"]["labels"]["training.mark.dev/stage"] == stage)
    job = bind(template, kind=KEY.kind, uid=UID, attempt=1)
    fact = read(job_with(job, "Failed"), pod_with(job, terminated(137, reason="OOMKilled"), "Failed"))
    assert isinstance(fact, Ended) and cure in fact.why.message


def test_only_a_verdict_finishes_a_job() -> None:
    assert is_finished(job_with(LORA, "Complete")) and not is_finished(job_with(LORA, "FailureTarget"))


def test_last_words_are_kept_when_they_are_no_result() -> None:
    fact = read(job_with(LORA, "Failed"), pod_with(LORA, terminated(1, "x" * 900 + "the end"), "Failed"))
    assert isinstance(fact, Ended) and fact.last_words is not None
    assert fact.last_words.endswith("the end") and len(fact.last_words) <= 500
