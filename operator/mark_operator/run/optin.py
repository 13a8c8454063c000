"""The two-step opt-in: whether a confirmation counts for the plan that would run now."""

from datetime import datetime

from mark_crds.run import PlanStatus, RunSpec

from mark_operator import clock
from mark_operator.messages import Note, note
from mark_operator.settings import Settings


def objection(spec: RunSpec, plan: PlanStatus, settings: Settings, now: datetime) -> Note | None:
    """Why this confirmation does not count, or None when it does. `plan` is the plan as it would run now."""
    if spec.confirm_plan is not None and spec.confirm_plan != plan.hash:
        return note("PlanChanged", confirmed=spec.confirm_plan, hash=plan.hash, command=plan.confirm_command)
    if settings.plan_expiry_seconds and clock.seconds_since(plan.planned_at, now) > settings.plan_expiry_seconds:
        return note("PlanExpired", seconds=settings.plan_expiry_seconds)
    if spec.confirm_plan is not None or settings.approval == "Field":
        return None
    if settings.approval == "PlanHash":
        return note("PlanHashRequired", command=plan.confirm_command)
    return None if plan.seen else note("ConfirmedUnseen", command=plan.confirm_command)
