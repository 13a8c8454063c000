"""What a TrainingRun and an EvalRun share: the switches of the opt-in, where they run, and their status. It must hold nothing that only one of them has."""

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from mark_crds import names
from mark_crds.job_output import MEASURES_KEPT, Artifact, Measure
from mark_crds.model import Model, Rule
from mark_crds.shared import (
    Condition,
    Digest,
    Name,
    NodeSelector,
    ObjectName,
    Sentence,
    Time,
    Toleration,
    Word,
    WorkspaceReference,
)

# Fields that say when and by whom, not what: outside the plan hash.
SWITCHES = ("dryRun", "confirm", "confirmPlan", "confirmedBy", "suspend", "ttlSecondsAfterFinished")

Number = Annotated[str, StringConstraints(max_length=24)]

State = Literal[
    "Planning",
    "PlanReady",
    "AwaitingConfirmation",
    "Queued",
    "Starting",
    "Running",
    "Suspended",
    "Succeeded",
    "Adopted",
    "Failed",
    "Cancelled",
]

SWITCH_RULES = (
    Rule(
        cel="!(self.confirm && self.dryRun)",
        message="spec.confirm: true needs spec.dryRun: false in the same change; set dryRun: false, or leave confirm out",
        check=lambda spec: not (spec.confirm and spec.dry_run),
    ),
)


class RunSpec(Model):
    """The part of a spec that both kinds of run have."""

    dry_run: bool = True
    """true, the default, only plans. A run starts when this is false and `confirm` is true."""
    confirm: bool = False
    """true starts the run whose plan was read; taking it back cancels a started run. Leave it out of files that are applied again."""
    confirm_plan: Digest | None = None
    """The full plan hash that is confirmed, from `status.plan.hash`. With it, the run starts only if the plan is still the same."""
    confirmed_by: Annotated[str, StringConstraints(min_length=1, max_length=253)] | None = None
    """Who confirmed; `mark confirm` fills it."""
    suspend: bool = False
    """true stops the run's Pods and keeps the run; false lets it go on."""
    training_revision: Annotated[str, StringConstraints(min_length=1, max_length=63)] = "1"
    """Change it to do the same work again; otherwise a finished result is adopted."""
    workspace: WorkspaceReference
    """The volume that the run reads and writes."""
    image: Annotated[str, StringConstraints(min_length=1, max_length=500)] | None = None
    """Trainer image, one of those that the administrator allows; absent means the administrator's default."""
    queue_name: Name | None = None
    """Kueue LocalQueue that admits the Jobs; absent means no queue."""
    node_selector: NodeSelector = Field(default={})
    """Labels that a node must have."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=16)] = ()
    """Taints that the Pods tolerate."""
    priority_class_name: ObjectName | None = None
    """PriorityClass of the Pods."""
    termination_grace_period_seconds: Annotated[int, Field(ge=10, le=3600)] = 120
    """Seconds that a Pod has to save a checkpoint when it is stopped."""
    active_deadline_seconds: Annotated[int, Field(ge=60, le=31536000)] = 86400
    """Seconds that one Job may run, from its start or its admission by a queue; the time until its Pods run counts."""
    pending_deadline_seconds: Annotated[int, Field(ge=0, le=31536000)] = 3600
    """Seconds until all Pods of a Job must run, from its start or its admission by a queue; then the attempt gives back what it holds and counts as failed. Nine tenths of activeDeadlineSeconds where that is less. 0 sets no limit of its own."""
    queue_deadline_seconds: Annotated[int, Field(ge=0, le=31536000)] = 0
    """Seconds that a Job may wait for its queue's admission; then the run fails. 0, the default, sets no limit."""
    max_attempts: Annotated[int, Field(ge=1, le=20)] = 3
    """Attempts of each stage when the machine fails; a mistake in the spec or the data is never tried again."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=31536000)] | None = None
    """Seconds after the end until the run's Jobs are deleted; absent keeps them as long as the run."""


class PlannedStage(Model):
    """One stage of a plan, in short form."""

    stage: Word
    """Name of the stage."""
    job: Annotated[str, StringConstraints(max_length=63)]
    """Name of the stage's first Job."""
    image: Annotated[str, StringConstraints(max_length=500)]
    """Image of the trainer."""
    nodes: int
    """Pods of the Job."""
    gpus: int
    """GPUs of all Pods together."""
    cpu: Annotated[str, StringConstraints(max_length=24)]
    """CPU of each Pod."""
    memory: Annotated[str, StringConstraints(max_length=24)]
    """Memory of each Pod."""
    steps_at_most: int | None = None
    """Optimizer steps at most; absent where the rows are not known before the run, and for stages without steps."""
    tokens_at_most: int | None = None
    """Trained tokens at most, when every row were as long as maxLength; absent like stepsAtMost."""
    gpu_hours_at_most: Number | None = None
    """GPU-hours of one attempt at most: all GPUs until activeDeadlineSeconds; absent for a stage without GPU."""
    writes: Annotated[tuple[Annotated[str, StringConstraints(max_length=600)], ...], Field(max_length=4)] = ()
    """What it writes in the workspace, beside the run's own folder `runs/<uid>`."""


class PlannedModel(Model):
    """What the run will do to the registry."""

    name: ObjectName
    """Name of the Model."""
    action: Literal["Create", "AddVersion", "Judge"]
    """Create a new entry, AddVersion to the one that exists, or Judge one of its versions."""
    version: Digest | None = None
    """The version that is current now, or the one that is judged."""
    drops: Digest | None = None
    """The oldest version that is not in use, which leaves the entry because 10 are kept."""


class Check(Model):
    """One prerequisite of a plan."""

    name: Word
    """What was looked at, such as `claim`."""
    outcome: Literal["Passed", "Failed", "NotChecked"]
    """Passed, Failed, or NotChecked when it could not be known."""
    message: Sentence
    """What was found, and the cure when it failed."""


class PlanStatus(Model):
    """What will run once the run is confirmed."""

    hash: Digest
    """sha256 over everything that determines the Jobs."""
    short_hash: Word
    """The first 12 digits of the hash, for columns; it confirms nothing."""
    seen: bool = False
    """Whether this plan already stood here while `confirm` was false, so that a bare `confirm` counts for it."""
    planned_at: Time
    """When this plan was first written."""
    stages: Annotated[tuple[PlannedStage, ...], Field(max_length=7)] = ()
    """The Jobs, one stage after another."""
    checks: Annotated[tuple[Check, ...], Field(max_length=24)] = ()
    """The prerequisites."""
    warnings: Annotated[tuple[Sentence, ...], Field(max_length=16)] = ()
    """What a person should know before confirming."""
    gpu_hours_at_most: Number | None = None
    """GPU-hours of all stages at most, one attempt each; a further attempt can take as much again. Absent without GPUs."""
    model: PlannedModel | None = None
    """What the run will do to the registry; absent for nothing."""
    unpinned: Annotated[tuple[Sentence, ...], Field(max_length=12)] = ()
    """What the hash names but does not bind the content of, field by field, and what binds it instead."""
    summary: Annotated[tuple[Sentence, ...], Field(max_length=16)] = ()
    """The plan in a few lines, for `kubectl describe`."""
    confirm_command: Sentence = ""
    """The command that confirms exactly this plan."""


class Failure(Model):
    """Why a stage failed."""

    reason: Word
    """One CamelCase word."""
    message: Sentence
    """What happened and what to do."""
    container: Word | None = None
    """The container that ended first."""
    exit_code: int | None = None
    """Its exit code."""
    last_words: Sentence | None = None
    """The end of its termination message, when that was not a Result."""


class StageStatus(Model):
    """How far one stage has come."""

    stage: Word
    """Name of the stage."""
    state: Literal["Pending", "Running", "Succeeded", "Failed", "Cancelled"]
    """How it stands."""
    job: Annotated[str, StringConstraints(max_length=63)]
    """The Job of the newest attempt."""
    attempt: int = 1
    """Number of the newest attempt."""
    counted_failures: int = 0
    """Failed attempts that count against maxAttempts."""
    started_at: Time | None = None
    """When the stage's first Job was created."""
    finished_at: Time | None = None
    """When the stage ended."""
    failure: Failure | None = None
    """Why the newest attempt failed, or why it is about to end."""
    last_failure: Failure | None = None
    """Why the attempt before the newest one ended."""
    artifacts: Annotated[tuple[Artifact, ...], Field(max_length=8)] = ()
    """What the stage published."""
    measures: Annotated[tuple[Measure, ...], Field(max_length=MEASURES_KEPT)] = ()
    """Headline numbers of the stage."""


class Progress(Model):
    """How far the running stage has come, as the trainer last said."""

    stage: Word
    """The stage that this is about."""
    percent: Annotated[int, Field(ge=0, le=100)]
    """Percent of the stage."""
    step: int | None = None
    """Steps done."""
    steps: int | None = None
    """Steps in all."""
    epoch: Annotated[str, StringConstraints(max_length=24)] | None = None
    """Epochs done."""
    loss: Annotated[str, StringConstraints(max_length=24)] | None = None
    """Newest training loss, in nats per trained token."""
    tokens_per_second: Annotated[str, StringConstraints(max_length=24)] | None = None
    """Trained tokens per second."""
    eta_seconds: int | None = None
    """Seconds until the stage's end, as estimated by the trainer."""
    updated: Time
    """When the trainer said so."""


class LastCheckpoint(Model):
    """The newest checkpoint, as the trainer last said: what a stop does not cost."""

    stage: Word
    """The stage that keeps it."""
    step: int
    """Steps that it holds."""
    time: Time
    """When it was kept."""


class Confirmation(Model):
    """Which plan was confirmed."""

    plan_hash: Digest
    """The plan's hash."""
    by: Annotated[str, StringConstraints(max_length=253)] | None = None
    """Who, as `spec.confirmedBy` says."""
    at: Time
    """When the operator accepted it."""


class RunResult(Model):
    """What came out of a run."""

    model: ObjectName | None = None
    """The registry entry that was written."""
    artifacts: Annotated[tuple[Artifact, ...], Field(max_length=12)] = ()
    """Everything that the stages published."""
    measures: Annotated[tuple[Measure, ...], Field(max_length=MEASURES_KEPT)] = ()
    """Headline numbers of the evaluation."""
    adopted_run: Word | None = None
    """Uid of the earlier run whose result was adopted."""
    passed: bool | None = None
    """For an EvalRun with pass criteria: whether all were met."""


class RunStatus(Model):
    """What the operator knows of a run. Written by the operator alone."""

    conditions: Annotated[tuple[Condition, ...], Field(max_length=8)] = ()
    """Planned, Confirmed, Progressing, Succeeded, Ready, Stalled; with a queue also Admitted."""
    observed_generation: int | None = None
    """The generation of the spec that this status was made from."""
    state: State | None = None
    """One word for people, derived from the conditions."""
    stage: Word | None = None
    """The stage that runs or ran last."""
    plan: PlanStatus | None = None
    """What will run, or ran."""
    confirmation: Confirmation | None = None
    """Which plan was confirmed, by whom and when."""
    started_at: Time | None = None
    """When the first Job was about to be created; the spec is frozen from then on."""
    finished_at: Time | None = None
    """When the run ended, for better or worse."""
    stages: Annotated[tuple[StageStatus, ...], Field(max_length=7)] = ()
    """How far each stage has come."""
    progress: Progress | None = None
    """How far the running stage has come."""
    last_checkpoint: LastCheckpoint | None = None
    """The newest checkpoint; also on the stage's Job, as annotations, for schedulers."""
    result: RunResult | None = None
    """What came out."""


def frozen(path: str, fields: Iterable[tuple[str, bool]]) -> str:
    """CEL that is true when none of the given fields of `self<path>` differs from `oldSelf<path>`.

    Each field comes with whether it may be absent; absent fields are compared with has(), never with optional chaining,
    whose estimated cost is over the API server's budget by far.
    """
    return " && ".join(_equal(path, field, optional) for field, optional in fields)


def _equal(path: str, field: str, optional: bool) -> str:
    mine, old = f"self{path}.{field}", f"oldSelf{path}.{field}"
    if not optional:
        return f"{mine} == {old}"
    return f"has({mine}) == has({old}) && (!has({mine}) || {mine} == {old})"


def spec_fields(spec: type[RunSpec]) -> list[tuple[str, bool]]:
    """Every field of a spec with its name in the manifest and whether the stored object may lack it."""
    return [
        (str(field.alias), field.default is None and not field.is_required()) for field in spec.model_fields.values()
    ]


def transition_rules(spec: type[RunSpec]) -> tuple[Rule, ...]:
    """The rules on changes of a run, for the root of its schema: what a confirmation may change, and what stays frozen after the start."""
    fields = spec_fields(spec)
    same_work = frozen(".spec", [f for f in fields if f[0] not in SWITCHES])
    same_plan = frozen(".spec", [("confirmPlan", True)])
    started = "has(oldSelf.status) && has(oldSelf.status.startedAt)"
    kept = [f for f in fields if f[0] in ("confirmPlan", "confirmedBy")]
    return (
        Rule(
            cel=f"oldSelf.spec.confirm || !self.spec.confirm || !({same_plan}) || ({same_work})",
            message="spec.confirm: the change that confirms may change nothing but dryRun, confirmPlan, confirmedBy and suspend; "
            "change the rest first and read the new plan, or name it with confirmPlan",
        ),
        Rule(
            cel=f"!oldSelf.spec.confirm || !self.spec.confirm || !({same_plan}) || ({same_work})",
            message="spec: a confirmed run keeps its work; take confirm back first, or confirm the new plan with confirmPlan in the same change",
        ),
        Rule(
            cel=f"!({started}) || ({same_work})",
            message="spec: the run has started, so only suspend, ttlSecondsAfterFinished and confirm: false (which cancels) may change; "
            "create a new run for other work",
        ),
        Rule(
            cel=f"!({started}) || !self.spec.confirm || (oldSelf.spec.confirm && !self.spec.dryRun && {frozen('.spec', kept)})",
            message="spec: the run has started; confirm can be taken back (which cancels), but neither given again nor changed. "
            "Create a new run to train again",
        ),
    )


NAME_RULE = Rule(
    cel=f"size(self.metadata.name) <= {names.RUN_NAME_LIMIT} && !self.metadata.name.contains('.')",
    message=f"metadata.name: at most {names.RUN_NAME_LIMIT} characters and no dots, because Jobs and Pods are named after it",
)
