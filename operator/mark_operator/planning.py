"""From a run of either kind to its rendered plan, or to the reason why there is none."""

from pydantic import ValidationError

from mark_operator.evaluation import plan as evaluation
from mark_operator.messages import Note, note
from mark_operator.run.plan import CannotPlanError, Rendering, Work, render
from mark_operator.seen import Body, RunKey
from mark_operator.settings import Settings
from mark_operator.training import plan as training


def plan(key: RunKey, spec: Body, settings: Settings, models: tuple[Body, ...] = ()) -> Rendering | Note:
    """The plan of a run as it would be made now. `models` are the registry entries that an EvalRun may name."""
    try:
        return render(_resolve(key, spec, settings, models))
    except ValidationError as error:
        return note("InvalidSpec", problem=in_words(error))
    except CannotPlanError as error:
        return error.note


def needs_models(kind: str, spec: Body) -> bool:
    """Whether the plan of such a run depends on the registry."""
    return kind == "EvalRun" and "path" not in spec.get("model", {})


def in_words(error: ValidationError) -> str:
    """What is wrong, field by field, with the fields named as in the manifest."""
    return "; ".join(_in_words(list(detail["loc"]), detail["msg"]) for detail in error.errors())


def _in_words(path: list[int | str], problem: str) -> str:
    problem = problem.removeprefix("Value error, ")
    return f"spec.{'.'.join(map(str, path))}: {problem}" if path else problem


def _resolve(key: RunKey, spec: Body, settings: Settings, models: tuple[Body, ...]) -> Work:
    if key.kind == "TrainingRun":
        return training.resolve(key, spec, settings)
    return evaluation.resolve(key, spec, settings, models)
