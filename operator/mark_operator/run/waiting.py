"""A run before its start: planned, checked, and started once a confirmation counts."""

from mark_crds.run import Confirmation, PlanStatus, State

from mark_operator import clock
from mark_operator.conditions import Truth
from mark_operator.decision import Decision
from mark_operator.messages import Note, note
from mark_operator.run.checks import check_all, failures
from mark_operator.run.describe import describe
from mark_operator.run.freeze import frozen
from mark_operator.run.optin import objection
from mark_operator.run.plan import Rendering
from mark_operator.run.view import View
from mark_operator.seen import Findings

Planned = tuple[tuple[str, Truth, Note], ...]


def unusable(view: View, why: Note) -> Decision:
    """The spec cannot be planned: it must be edited, or something it names must come to be."""
    edit = why.reason in ("InvalidSpec", "PlanningFailed")
    more: Planned = (("Planned", "False", why), ("Confirmed", "False", why))
    status = view.stand("Planning", why, more=more, stalled=edit, plan=None)
    return Decision(status=status, again_in=None if edit else view.settings.timings.check_seconds)


def decide_waiting(view: View, rendering: Rendering, findings: Findings | None) -> Decision:
    """Write the plan down; start if the confirmation counts for it and every check allows it. Without findings, the
    checks in the status stay."""
    old = view.status.plan
    checks = old.checks if findings is None and old else check_all(rendering, findings or Findings())
    plan = _plan(view, rendering).model_copy(update={"checks": checks})
    failed = failures(checks)
    refusal = objection(rendering.means.spec, plan, view.settings, view.now) if view.confirmed else None
    if refusal is not None:
        return _wait(view, plan, "AwaitingConfirmation", refusal)
    if failed:
        return _wait(view, plan, "Planning", note("PrerequisiteFailed", problem=failed))
    if not view.confirmed:
        return _ready(view, plan)
    freeze = frozen(view.settings, findings)
    if freeze is not None:
        return _wait_for_thaw(view, plan, freeze)
    return _start(view, plan)


def _plan(view: View, rendering: Rendering) -> PlanStatus:
    """The plan for the status. It counts as seen once it is written while `confirm` is false: the write carries the
    resourceVersion that was read, so it lands on exactly that unconfirmed object."""
    old = view.status.plan
    same = old is not None and old.hash == rendering.hash
    kept = old.planned_at if same and old is not None and not _aged(view, old) else view.now_text
    seen = not view.spec.get("confirm", False) or (same and old is not None and old.seen)
    return describe(rendering, view.seen.models).model_copy(update={"seen": seen, "planned_at": kept})


def _aged(view: View, old: PlanStatus) -> bool:
    """Whether an unconfirmed plan that grew too old is made anew;
    the taking back of a confirmation is the sign to do so."""
    limit = view.settings.plan_expiry_seconds
    edited = view.status.observed_generation != view.seen.generation and not view.spec.get("confirm", False)
    return bool(limit) and edited and clock.seconds_since(old.planned_at, view.now) > limit


def _planned(view: View, plan: PlanStatus, truth: Truth, confirmed: Note) -> Planned:
    planned = note("Planned", hash=plan.hash, generation=view.seen.generation)
    return (("Planned", "True", planned), ("Confirmed", truth, confirmed))


def _confirmed(view: View, plan: PlanStatus) -> Note:
    by = view.spec.get("confirmedBy")
    return note("Confirmed", hash=plan.hash, by=f" by {by}" if by else "")


def _not_confirmed(plan: PlanStatus) -> Note:
    return note("NotConfirmed", command=plan.confirm_command)


def _ready(view: View, plan: PlanStatus) -> Decision:
    why = note("PlanReady", hash=plan.hash, command=plan.confirm_command)
    status = view.stand("PlanReady", why, more=_planned(view, plan, "False", _not_confirmed(plan)), plan=plan)
    return Decision(status=status, again_in=view.settings.timings.relist_seconds)


def _wait(view: View, plan: PlanStatus, state: State, why: Note) -> Decision:
    confirmed = why if view.confirmed else _not_confirmed(plan)
    status = view.stand(state, why, more=_planned(view, plan, "False", confirmed), plan=plan)
    return Decision(status=status, again_in=view.settings.timings.check_seconds)


def _wait_for_thaw(view: View, plan: PlanStatus, why: Note) -> Decision:
    status = view.stand("Queued", why, more=_planned(view, plan, "True", _confirmed(view, plan)), plan=plan)
    return Decision(status=status, again_in=view.settings.timings.check_seconds)


def _start(view: View, plan: PlanStatus) -> Decision:
    """Only this status, before any Job: once it stands, the API server freezes the spec."""
    why = note("Starting", stage="preflight", attempt=1, detail="the confirmed plan is being stored")
    confirmation = Confirmation(plan_hash=plan.hash, by=view.spec.get("confirmedBy"), at=view.now_text)
    status = view.stand(
        "Starting",
        why,
        more=_planned(view, plan, "True", _confirmed(view, plan)),
        plan=plan,
        confirmation=confirmation,
        started_at=view.now_text,
        stage="preflight",
    )
    return Decision(status=status, again_in=0)
