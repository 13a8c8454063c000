"""The good end of a run: its result, and what it leaves in the registry in the same step."""

from mark_crds import names
from mark_crds.job_input import JobInput
from mark_crds.run import RunResult, StageStatus, State

from mark_operator.conditions import Decided
from mark_operator.decision import Decision
from mark_operator.messages import Note
from mark_operator.registry.decide import enter_verdict, enter_version, passed
from mark_operator.run.view import View


def finish(
    view: View, state: State, why: Note, *, result: RunResult, stages: tuple[StageStatus, ...], more: Decided = ()
) -> Decision:
    """The terminal status, written after the registry, so that a success is never without its entry."""
    stored = view.seen.stored_plan
    assert stored is not None
    job_input = JobInput.model_validate_json(stored["data"][names.JOB_INPUT_KEY])
    if job_input.kind == "EvalRun":
        result = result.model_copy(update={"passed": passed(view.spec.get("pass", []), result.measures)})
        write = enter_verdict(view, job_input, result)
    else:
        write = enter_version(view, job_input, result)
    if write is not None:
        result = result.model_copy(update={"model": write.name})
    return Decision(status=view.end(state, why, stages=stages, result=result, more=more), model=write, again_in=0)
