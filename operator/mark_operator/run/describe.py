"""From a rendering to the plan as the status shows it: the same words in the cluster and offline."""

from mark_crds.run import PlanStatus

from mark_operator.registry.forecast import forecast
from mark_operator.run.bounds import gpu_hours
from mark_operator.run.pins import unpinned
from mark_operator.run.plan import Rendering, confirm_command, planned_stages
from mark_operator.run.summary import summarize
from mark_operator.seen import Body


def describe(rendering: Rendering, models: tuple[Body, ...]) -> PlanStatus:
    """The plan for people; when it was made, who saw it and its checks are added by others."""
    stages, model = planned_stages(rendering), forecast(rendering.job_input, models)
    hours = gpu_hours(rendering.means, rendering.stages)
    return PlanStatus(
        hash=rendering.hash,
        short_hash=rendering.hash[:12],
        planned_at="",
        stages=stages,
        gpu_hours_at_most=hours,
        model=model,
        unpinned=unpinned(rendering.job_input, rendering.means),
        summary=summarize(rendering, stages, hours, model),
        warnings=rendering.warnings,
        confirm_command=confirm_command(rendering.means.key, rendering.hash),
    )
