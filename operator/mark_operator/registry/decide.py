"""What a run's success writes into the registry, and how a Model keeps up with what people promote."""

from decimal import Decimal, InvalidOperation

from mark_crds.job_input import JobInput
from mark_crds.job_output import Artifact, Measure
from mark_crds.registered_model import ModelVersion, RegisteredModelStatus
from mark_crds.run import RunResult, StageStatus

from mark_operator.decision import ModelWrite
from mark_operator.registry.versions import enter, judge, spec_of, status_of, with_current
from mark_operator.run.view import View
from mark_operator.seen import Body

FAMILIES = ("transformer", "mamba", "reinforcementLearning")
DEFAULT_FAMILY = "transformer"
NOT_MEASURED = Decimal(-1)


def keep_current(model: Body) -> ModelWrite | None:
    """The write that makes a Model's current version follow its spec; none when it does already."""
    status = status_of(model)
    wanted = with_current(status, spec_of(model).promoted_version)
    return None if wanted == status else _write(model, wanted)


def enter_version(view: View, job_input: JobInput, result: RunResult) -> ModelWrite | None:
    """The registry entry of a training run that succeeded; none when it asked for none, or tuned nothing."""
    adapter = _artifact(result.artifacts, "adapter")
    if job_input.output_model is None or adapter is None:
        return None
    model = _model(view, job_input.output_model) or _new_model(view, job_input.output_model)
    promoted = spec_of(model).promoted_version
    status = enter(with_current(status_of(model), promoted), _version(view, job_input, result, adapter))
    return _write(model, with_current(status, promoted))


def enter_verdict(view: View, job_input: JobInput, result: RunResult) -> ModelWrite | None:
    """The verdict of an evaluation on the version that it measured; none when no registered version was measured."""
    measured = job_input.evaluated_model
    model = _model(view, measured.name) if measured is not None else None
    if measured is None or model is None or measured.adapter_digest is None:
        return None
    report = _artifact(result.artifacts, "report")
    changes: dict[str, object] = {"headline": result.measures, "evaluation": report.path if report else None}
    if result.passed is not None:
        changes["passed"] = result.passed
    status = judge(status_of(model), measured.adapter_digest, changes)
    return _write(model, with_current(status, spec_of(model).promoted_version))


def passed(criteria: list[dict[str, str]], measures: tuple[Measure, ...]) -> bool | None:
    """Whether all pass criteria of an EvalRun were met;
    None when it has none. A number that is missing, or that no metric can reach, was not reached."""
    if not criteria:
        return None
    reached = {measure.name: _score(measure.value) for measure in measures}
    return all(
        reached.get(f"tuned.{criterion['condition']}.{criterion['metric']}", NOT_MEASURED)
        >= Decimal(criterion["minimum"])
        for criterion in criteria
    )


def _score(text: str) -> Decimal:
    """A metric's value, from 0 to 1; NOT_MEASURED for anything else."""
    try:
        value = Decimal(text)
    except InvalidOperation:
        return NOT_MEASURED
    return value if value.is_finite() and 0 <= value <= 1 else NOT_MEASURED


def _version(view: View, job_input: JobInput, result: RunResult, adapter: Artifact) -> ModelVersion:
    dataset, report = _artifact(result.artifacts, "dataset"), _artifact(result.artifacts, "report")
    base, confirmation = job_input.base_model, view.status.confirmation
    assert base is not None and confirmation is not None
    return ModelVersion(
        digest=adapter.digest,
        path=adapter.path,
        claim_name=view.spec["workspace"]["claimName"],
        run=view.seen.key.name,
        run_uid=result.adopted_run or view.seen.uid,
        plan_hash=confirmation.plan_hash,
        base=base.path or str(base.hugging_face_id),
        dataset=dataset.digest if dataset else None,
        headline=result.measures,
        evaluation=report.path if report else None,
        created=view.now_text,
    )


def _new_model(view: View, name: str) -> Body:
    return {
        "metadata": {"name": name, "namespace": view.seen.key.namespace},
        "spec": {"family": _family(view.status.stages)},
    }


def _family(stages: tuple[StageStatus, ...]) -> str:
    """The family that the trainer named among its measures."""
    named = [measure.value for stage in stages for measure in stage.measures if measure.name == "family"]
    return named[-1] if named and named[-1] in FAMILIES else DEFAULT_FAMILY


def _model(view: View, name: str) -> Body | None:
    return next((model for model in view.seen.models if model["metadata"]["name"] == name), None)


def _artifact(artifacts: tuple[Artifact, ...], kind: str) -> Artifact | None:
    return next((artifact for artifact in reversed(artifacts) if artifact.kind == kind), None)


def _write(model: Body, status: RegisteredModelStatus) -> ModelWrite:
    return ModelWrite(model["metadata"]["name"], model["metadata"]["namespace"], model["spec"], status)
