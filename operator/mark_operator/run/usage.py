"""What an attempt that just ended has used, for the metrics. Pure; it decides nothing."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from mark_crds.run import RunStatus, StageStatus

from mark_operator import clock
from mark_operator.job_facts import ended_at, is_finished
from mark_operator.seen import Body

Outcome = Literal["Succeeded", "Failed", "Interrupted", "Cancelled"]
ENDS = ("Succeeded", "Failed", "Cancelled")
NO_GPU = ("cpu", "memory")


@dataclass(frozen=True)
class Usage:
    """One attempt: how it ended, and for how long it held how many GPUs."""

    stage: str
    outcome: Outcome
    gpu_seconds: float


def ended_attempts(old: RunStatus, new: RunStatus, jobs: dict[str, Body], now: datetime) -> tuple[Usage, ...]:
    """The attempts that end with this change of the status. `Interrupted` are those that count against nothing. What a
    Job held that was deleted while it worked is told of its deletion, since it is gone by now."""
    before = {entry.stage: entry for entry in old.stages}
    return tuple(
        Usage(entry.stage, _outcome(before.get(entry.stage), entry), _used(jobs.get(entry.job), now))
        for entry in new.stages
        if entry.state in ENDS and _differs(before.get(entry.stage), entry)
    )


def _used(job: Body | None, now: datetime) -> float:
    return gpu_seconds(job, now) if job is not None and is_finished(job) else 0.0


def gpu_seconds(job: Body, now: datetime) -> float:
    """GPUs of all Pods times the seconds since the Job's newest start; 0 for a Job that never started."""
    since = job.get("status", {}).get("startTime")
    if since is None:
        return 0.0
    limits = job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    gpus = sum(int(number) for name, number in limits.items() if name not in NO_GPU)
    end = clock.parse(ended_at(job)) if ended_at(job) else now
    return gpus * int(job["spec"]["parallelism"]) * max(0.0, clock.seconds_since(since, end))


def _differs(old: StageStatus | None, new: StageStatus) -> bool:
    return old is None or (old.attempt, old.state) != (new.attempt, new.state)


def _outcome(old: StageStatus | None, new: StageStatus) -> Outcome:
    if new.state == "Failed":
        counted = new.counted_failures > (old.counted_failures if old else 0)
        return "Failed" if counted else "Interrupted"
    return "Succeeded" if new.state == "Succeeded" else "Cancelled"
