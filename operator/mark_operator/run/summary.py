"""A plan in a few lines that a person reads in ten seconds. It computes nothing."""

from collections.abc import Iterator

from mark_crds.run import PlannedModel, PlannedStage

from mark_operator.run.plan import Rendering


def summarize(
    rendering: Rendering, stages: tuple[PlannedStage, ...], hours: str | None, model: PlannedModel | None
) -> tuple[str, ...]:
    """What will run, with what, and what it leaves behind."""
    return (*_inputs(rendering), *(_stage(stage) for stage in stages), *_outputs(rendering, hours, model))


def model_line(model: PlannedModel) -> str:
    """What becomes of the registry entry."""
    version = model.version[:12] if model.version else ""
    match model.action:
        case "Create":
            return f"{model.name}, a new entry"
        case "Judge":
            return f"{model.name}, a verdict on version {version}"
        case _:
            gone = f"; drops {model.drops[:12]}, the oldest that is not in use" if model.drops else ""
            return f"{model.name}, one more version (current: {version or 'none'}){gone}"


def stage_bounds(stage: PlannedStage) -> str:
    """The upper bounds of a stage, those that are known."""
    parts = (
        f"{stage.steps_at_most:,} steps" if stage.steps_at_most is not None else "",
        f"{stage.tokens_at_most:,} tokens" if stage.tokens_at_most is not None else "",
        f"{stage.gpu_hours_at_most} GPU-hours" if stage.gpu_hours_at_most is not None else "",
    )
    return ", ".join(part for part in parts if part)


def _inputs(rendering: Rendering) -> Iterator[str]:
    job_input = rendering.job_input
    base, dataset, measured = job_input.base_model, job_input.dataset, job_input.evaluated_model
    if measured is not None:
        yield f"measures: {measured.name}" + (f", {measured.adapter_path}" if measured.adapter_path else "")
    if base is not None:
        yield f"base model: {base.path or f'{base.hugging_face_id} at {base.revision}'}"
    if dataset is not None:
        yield f"dataset: {dataset.path}"
    elif "dataPrep" in job_input.stages:
        data = job_input.data_prep
        yield f"dataset: made from collection {data.collection}, {data.max_samples:,} rows at most"


def _stage(stage: PlannedStage) -> str:
    nodes = "1 node" if stage.nodes == 1 else f"{stage.nodes} nodes"
    gpus = {0: "no GPU", 1: "1 GPU"}.get(stage.gpus, f"{stage.gpus} GPUs")
    bounds = stage_bounds(stage)
    writes = f"; writes {', '.join(stage.writes)}" if stage.writes else ""
    return f"{stage.stage}: {nodes}, {gpus}" + (f", at most {bounds}" if bounds else "") + writes


def _outputs(rendering: Rendering, hours: str | None, model: PlannedModel | None) -> Iterator[str]:
    attempts = rendering.means.spec.max_attempts
    if hours is not None:
        yield f"in all: at most {hours} GPU-hours with one attempt a stage, and {attempts} attempts a stage"
    yield f"storage: claim {rendering.means.spec.workspace.claim_name}, folder runs/<uid> and those above"
    yield f"model: {model_line(model)}" if model else "model: the registry is left alone"
