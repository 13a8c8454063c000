"""From an accepted spec to its plan: the Job input, the rendered Jobs of all stages, and the hash that binds them."""

import json
from dataclasses import dataclass
from typing import Any

from mark_crds import names
from mark_crds.job_input import JobInput, canonical_json, digest_of
from mark_crds.run import SWITCHES, PlannedStage, RunSpec

from mark_operator.messages import Note
from mark_operator.run.bounds import bounds
from mark_operator.run.means import Means
from mark_operator.run.objects import job_template
from mark_operator.seen import Body, RunKey

HASHED_KEYS = (names.JOB_INPUT_KEY, names.JOBS_KEY)


class CannotPlanError(Exception):
    """Something that the spec names is not there."""

    def __init__(self, why: Note) -> None:
        super().__init__(why.message)
        self.note = why


@dataclass(frozen=True)
class Rendering:
    """A plan, rendered: what would run, and what a person should know of it."""

    means: Means
    job_input: JobInput
    jobs: tuple[Body, ...]
    data: dict[str, str]
    hash: str
    warnings: tuple[str, ...] = ()

    @property
    def stages(self) -> tuple[str, ...]:
        return stages_of(self.jobs)


@dataclass(frozen=True)
class Work:
    """A resolved spec: the one file that every Job reads, and what the Jobs may use."""

    job_input: JobInput
    means: Means
    warnings: tuple[str, ...] = ()


def render(work: Work) -> Rendering:
    """The plan of resolved work. Equal work renders to equal bytes. Raises ValidationError for work that a Job could
    not read again."""
    stages = ("preflight", *work.job_input.stages)
    jobs = tuple(job_template(work.means, stage) for stage in stages)
    data = {
        names.JOB_INPUT_KEY: canonical_json(work.job_input.to_dict()),
        names.JOBS_KEY: canonical_json(list(jobs)),
    }
    JobInput.model_validate_json(data[names.JOB_INPUT_KEY])  # or it would only show once something runs
    return Rendering(work.means, work.job_input, jobs, data, plan_digest(data), work.warnings)


def plan_digest(data: dict[str, str]) -> str:
    """The plan hash of a plan's ConfigMap: over the Job input and the Jobs, not over the certificate beside them."""
    return digest_of({key: data.get(key, "") for key in HASHED_KEYS})


def stored_jobs(config_map: Body) -> tuple[Body, ...]:
    """The rendered Jobs of a started run, in order."""
    jobs: list[Body] = json.loads(config_map["data"][names.JOBS_KEY])
    return tuple(jobs)


def stages_of(jobs: tuple[Body, ...]) -> tuple[str, ...]:
    """The stage of each rendered Job, in order."""
    return tuple(job["metadata"]["labels"][names.STAGE_LABEL] for job in jobs)


def replay_key(key: RunKey, spec: RunSpec) -> str:
    """Equal for equal work of the same run name:
    what differs from the defaults, and the training revision; never a switch or a setting."""
    changed = spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    work = {field: value for field, value in changed.items() if field not in SWITCHES}
    return digest_of(
        {
            "kind": key.kind,
            "namespace": key.namespace,
            "name": key.name,
            "spec": work,
            "trainingRevision": spec.training_revision,
        }
    )


def planned_stages(rendering: Rendering) -> tuple[PlannedStage, ...]:
    """The Jobs in short form, for the status."""
    return tuple(_short_form(rendering, job) for job in rendering.jobs)


def confirm_command(key: RunKey, plan_hash: str) -> str:
    """The command that confirms exactly this plan."""
    kind = "" if key.kind == "TrainingRun" else f"{key.kind.lower()}/"
    return f"mark confirm {kind}{key.name} -n {key.namespace} --plan {plan_hash}"


def _short_form(rendering: Rendering, job: Body) -> PlannedStage:
    means = rendering.means
    stage = job["metadata"]["labels"][names.STAGE_LABEL]
    container: dict[str, Any] = job["spec"]["template"]["spec"]["containers"][0]
    limits = container["resources"]["limits"]
    return PlannedStage(
        stage=stage,
        job=job["metadata"]["name"],
        image=container["image"],
        nodes=means.nodes(stage),
        gpus=means.nodes(stage) * means.gpus_per_node(stage),
        cpu=limits["cpu"],
        memory=limits["memory"],
        **bounds(rendering.job_input, means, stage),
    )
