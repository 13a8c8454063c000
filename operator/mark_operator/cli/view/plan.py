"""A plan as a person reads it in ten seconds: stages, checks, warnings, and the command that confirms it."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from mark_crds.run import PlannedModel
from mark_crds.shared import normal_decimal
from rich.console import Group, RenderableType
from rich.text import Text

from mark_operator.cli.view.formatting import (
    duration,
    plain_table,
    plural,
    rounded,
    seconds_between,
    short_digest,
    short_image,
)
from mark_operator.run.summary import model_line

Json = dict[str, Any]

_OUTCOMES = {"Failed": ("FAILED", "bold red"), "NotChecked": ("not checked", "yellow")}


def plan_view(run: Json, now: datetime) -> RenderableType:
    """The plan of a run whose status holds one."""
    plan = run["status"]["plan"]
    state = run["status"].get("state") or "Planning"
    age = duration(seconds_between(plan["plannedAt"], now))
    title = f"{state} · planned {age} ago"
    return Group(*_parts(run, title, checks_view(plan.get("checks", []))), "", *_ending(run, plan))


def offline_plan_view(run: Json, *, pinned: str) -> RenderableType:
    """A plan that was rendered without a cluster; `pinned` says what the hash depends on besides the spec."""
    plan = run["status"]["plan"]
    unchecked = Text(
        "\nChecks: none, because no cluster was asked. `kubectl apply` of the same file shows them in `mark plan`."
    )
    return Group(
        *_parts(run, "rendered offline", unchecked), "", pinned, *_unpinned(plan), "",
        "To run exactly this plan, once it is applied:", f"  {plan['confirmCommand']}",
    )  # fmt: skip


def local_plan_view(run: Json, checks: list[Json], *, ending: list[str]) -> RenderableType:
    """A plan of this machine: rendered without a cluster, with what was checked here."""
    return Group(*_parts(run, "on this machine", checks_view(checks)), "", *ending)


def _unpinned(plan: Json) -> Iterator[RenderableType]:
    """The fields whose content the hash does not bind."""
    fields = plan.get("unpinned", [])
    if not fields:
        yield "Everything that it names is pinned by digest."
        return
    yield Text("It does not bind the content of:", style="yellow")
    yield from (f"  - {field}" for field in fields)


def confirming_view(run: Json) -> RenderableType:
    """The plan once more, at its confirmation: what will run, without what was checked."""
    metadata, plan = run["metadata"], run["status"]["plan"]
    title = Text(f"{run['kind']} {metadata['namespace']}/{metadata['name']} · plan {plan['hash']}", style="bold")
    return Group(title, *_facts(run), "", stages_view(run), _total(plan), *_warnings(plan))


def checks_view(checks: list[Json]) -> RenderableType:
    """The prerequisites: what failed or is not known, one each; what is in order, in one line."""
    if not checks:
        return Text("\nChecks: none yet.")
    passed = [check["name"] for check in checks if check["outcome"] == "Passed"]
    lines: list[RenderableType] = [""]
    if len(passed) < len(checks):
        table = plain_table("CHECK", "OUTCOME", "FOUND")
        for outcome, (word, style) in _OUTCOMES.items():
            for check in (check for check in checks if check["outcome"] == outcome):
                table.add_row(check["name"], Text(word, style=style), check["message"])
        lines.append(table)
    if passed:
        lines.append(Text.assemble((f"{plural(len(passed), 'check')} passed: ", "green"), ", ".join(passed)))
    return Group(*lines)


def failed_checks(plan: Json) -> list[Json]:
    """The checks that keep a run from being confirmed."""
    return [check for check in plan.get("checks", []) if check["outcome"] == "Failed"]


def stages_view(run: Json) -> RenderableType:
    """The Jobs of the plan, one stage after another."""
    table = plain_table("STAGE", "NODES", "GPUS", "CPU", "MEMORY", "WORK", right=("NODES", "GPUS", "CPU", "MEMORY"))
    for stage in run["status"]["plan"].get("stages", []):
        table.add_row(
            stage["stage"], str(stage["nodes"]), str(stage["gpus"]), stage["cpu"], stage["memory"],
            work_of(stage["stage"], run["spec"]),
        )  # fmt: skip
    return table


def _bounds(stage: Json) -> str:
    """Upper bounds of a stage, in short."""
    units = (("stepsAtMost", "steps"), ("tokensAtMost", "tokens"), ("gpuHoursAtMost", "GPU-hours"))
    return ", ".join(f"{rounded(stage[field])} {unit}" for field, unit in units if field in stage)


def work_of(stage: str, spec: Json) -> str:
    """What a stage does, from the numbers in the spec that a reviewer looks for."""
    describe = _WORK.get(stage)
    return describe(spec) if describe else ""


def _parts(run: Json, title: str, checks: RenderableType) -> Iterator[RenderableType]:
    plan, metadata = run["status"]["plan"], run["metadata"]
    yield Text(f"{run['kind']} {metadata.get('namespace', 'default')}/{metadata['name']} · {title}", style="bold")
    yield f"plan {plan['hash']}"
    yield from _facts(run)
    yield ""
    yield stages_view(run)
    yield _total(plan)
    yield checks
    yield from _warnings(plan)


def _warnings(plan: Json) -> Iterator[RenderableType]:
    if warnings := plan.get("warnings"):
        yield Text("\nWarnings", style="yellow")
        yield from (f"  - {warning}" for warning in warnings)


def _facts(run: Json) -> Iterator[str]:
    spec = run["spec"]
    images = sorted({short_image(stage["image"]) for stage in run["status"]["plan"].get("stages", [])})
    facts = {
        "image": ", ".join(images),
        "workspace": spec["workspace"]["claimName"],
        "base model": _base(spec),
        "measures": _measured(spec) if run["kind"] == "EvalRun" else "",
        "model": _model(run),
        "queue": spec.get("queueName", ""),
    }
    yield " · ".join(f"{name} {value}" for name, value in facts.items() if value)


def _model(run: Json) -> str:
    """What becomes of the registry entry; offline nobody knows whether there is one."""
    planned = run["status"]["plan"].get("model")
    if planned is not None:
        return model_line(PlannedModel.model_validate(planned))
    return str(run["spec"].get("output", {}).get("model", "")) if run["kind"] == "TrainingRun" else ""


def _base(spec: Json) -> str:
    base = spec.get("baseModel", {})
    return str(base.get("path") or (f"{base['huggingFaceId']}@{short_digest(base['revision'])}" if base else ""))


def _measured(spec: Json) -> str:
    model = spec["model"]
    return str(model.get("name") or model.get("path") or "the AutoPipeline's choice")


def _total(plan: Json) -> Text:
    stages = plan.get("stages", [])
    most = max((stage["gpus"] for stage in stages), default=0)
    gpus = f"{plural(most, 'GPU')} at most at a time" if most else "no GPU"
    lines = [f"{plural(len(stages), 'Job')} one after another, {gpus}"]
    if bounds := [f"{stage['stage']} {_bounds(stage)}" for stage in stages if _bounds(stage)]:
        hours = f"; {plan['gpuHoursAtMost']} GPU-hours in all" if "gpuHoursAtMost" in plan else ""
        lines.append(f"At most: {'; '.join(bounds)}{hours}")
    if written := [folder for stage in stages for folder in stage.get("writes", [])]:
        lines.append(f"Writes: {', '.join(written)}")
    return Text("\n".join(lines), style="dim")


def _ending(run: Json, plan: Json) -> Iterator[RenderableType]:
    confirmation = run["status"].get("confirmation")
    failed = failed_checks(plan)
    if confirmation:
        yield f"Confirmed by {confirmation.get('by') or 'somebody'} at {confirmation['at']}."
    elif failed:
        yield Text(f"{plural(len(failed), 'check')} failed, so it cannot be confirmed yet.", style="bold red")
    else:
        yield "Nothing runs until this plan is confirmed:"
        yield f"  {plan.get('confirmCommand') or 'mark confirm ' + run['metadata']['name']}"


def _data_prep_work(spec: Json) -> str:
    data = spec.get("dataPrep", {})
    held_out = f"{round(float(data.get('validationFraction', '0.2')) * 100)} % of the documents held out"
    rows = f"at most {data.get('maxSamples', 1000):,} rows, topK {data.get('topK', 3)}"
    return f"{data.get('collection', 'pdf_docs')}: {rows}, {held_out}"


def _lora_work(spec: Json) -> str:
    lora = spec.get("lora", {})
    rows = lora.get("batchSize", 4) * lora.get("gradientAccumulationSteps", 4)
    return (
        f"{plural(lora.get('epochs', 0), 'epoch')}, rank {lora.get('rank', 16)}, "
        f"learning rate {normal_decimal(lora.get('learningRate', '2e-4'))}, {rows} rows a step"
    )


def _reward_work(spec: Json) -> str:
    rlhf = spec.get("rlhf", {})
    reward, judged = rlhf.get("reward", {}), rlhf.get("preferences", {}).get("path")
    pairs = reward.get("batchSize", 4) * reward.get("gradientAccumulationSteps", 1)
    source = f"pairs that people judged ({judged})" if judged else "pairs made by rules, not by people"
    return (
        f"{plural(reward.get('epochs', 0), 'epoch')} over {source}, rank {reward.get('rank', 16)}, {pairs} pairs a step"
    )


def _ppo_work(spec: Json) -> str:
    ppo = spec.get("rlhf", {}).get("ppo", {})
    return (
        f"{plural(ppo.get('steps', 0), 'step')} of {ppo.get('rolloutsPerStep', 32)} answers, "
        f"learning rate {normal_decimal(ppo.get('learningRate', '1e-5'))}, "
        f"KL coefficient {normal_decimal(ppo.get('klCoefficient', '0.05'))}"
    )


def _evaluation_work(spec: Json) -> str:
    evaluation = {**spec.get("evaluation", {}), **({"rag": spec["rag"].get("enabled", True)} if "rag" in spec else {})}
    items = spec.get("maxItems") or evaluation.get("maxItems", 200)
    metrics = spec.get("metrics") or evaluation.get("metrics") or ["exactMatch", "f1", "rougeL", "bleu"]
    retrieval = "with and without retrieval" if evaluation.get("rag", True) else "without retrieval"
    return f"at most {items:,} rows, {', '.join(metrics)}, {retrieval}"


_WORK = {
    "preflight": lambda spec: "looks at every path and setting of all stages, asks for no GPU",
    "ingest": lambda spec: (
        f"PDF files of {spec.get('ingest', {}).get('path', 'corpus')} into the collection "
        f"{spec.get('dataPrep', {}).get('collection', 'pdf_docs')}"
    ),
    "dataPrep": _data_prep_work,
    "lora": _lora_work,
    "reward": _reward_work,
    "ppo": _ppo_work,
    "eval": _evaluation_work,
}
