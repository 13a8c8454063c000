"""The two-step opt-in: which confirmation counts for which plan."""

from datetime import timedelta

import pytest
from mark_crds.run import PlanStatus
from mark_crds.training_run import TrainingRunSpec
from mark_operator import clock
from mark_operator.run.decide import decide
from mark_operator.run.optin import objection
from mark_operator.run.view import View
from run_builders import KEY, NOON, SETTINGS, a_run, all_well, rendering_of, training, view_of

PLAN = rendering_of(training())
OTHER = ("0" if PLAN.hash[0] != "0" else "1") + PLAN.hash[1:]
ON = {"dryRun": False, "confirm": True}


def plan_status(seen: bool) -> PlanStatus:
    return PlanStatus(
        hash=PLAN.hash,
        short_hash=PLAN.hash[:12],
        seen=seen,
        planned_at=clock.text_of(NOON),
        confirm_command="mark confirm",
    )


@pytest.mark.parametrize(
    ("approval", "seen", "confirm_plan", "expected"),
    [
        ("Seen", True, None, None),
        ("Seen", False, None, "ConfirmedUnseen"),
        ("Seen", False, PLAN.hash, None),
        ("Seen", True, OTHER, "PlanChanged"),
        ("PlanHash", True, None, "PlanHashRequired"),
        ("PlanHash", False, PLAN.hash, None),
        ("PlanHash", True, OTHER, "PlanChanged"),
        ("Field", False, None, None),
        ("Field", True, OTHER, "PlanChanged"),
    ],
)
def test_what_counts(approval: str, seen: bool, confirm_plan: str | None, expected: str | None) -> None:
    spec = TrainingRunSpec.model_validate(training(**ON, **({"confirmPlan": confirm_plan} if confirm_plan else {})))
    settings = SETTINGS.model_copy(update={"approval": approval})
    found = objection(spec, plan_status(seen), settings, NOON)
    assert (found.reason if found else None) == expected


def test_an_old_plan_cannot_be_confirmed() -> None:
    settings = SETTINGS.model_copy(update={"plan_expiry_seconds": 60})
    spec = TrainingRunSpec.model_validate(training(**ON))
    assert objection(spec, plan_status(True), settings, NOON + timedelta(seconds=59)) is None
    found = objection(spec, plan_status(True), settings, NOON + timedelta(seconds=61))
    assert found is not None and found.reason == "PlanExpired"


def step(view: View) -> dict[str, object]:
    """The status after one decision on a run that is not started."""
    decision = decide(view, rendering_of(view.spec, view.settings), all_well())
    assert decision.status is not None and decision.create == ()
    return decision.status.to_dict()


def test_a_plan_is_seen_once_it_stood_unconfirmed() -> None:
    planned = step(view_of(a_run(training())))
    assert planned["plan"]["seen"] is True  # type: ignore[index]
    started = step(view_of(a_run(training(**ON), planned)))
    assert started["state"] == "Starting" and started["confirmation"]["planHash"] == PLAN.hash  # type: ignore[index]


def test_a_plan_that_changed_with_its_confirmation_was_not_seen() -> None:
    planned = step(view_of(a_run(training())))
    changed = step(view_of(a_run(training(**ON, lora={"epochs": 9}), planned)))
    assert changed["state"] == "AwaitingConfirmation" and "startedAt" not in changed
    again = step(view_of(a_run(training(**ON, lora={"epochs": 9}), changed)))
    assert again == changed, "waiting is stable"


def test_taking_back_and_giving_again_makes_it_seen() -> None:
    waiting = step(view_of(a_run(training(**ON))))
    assert waiting["state"] == "AwaitingConfirmation"
    back = step(view_of(a_run(training(), waiting)))
    assert back["state"] == "PlanReady"
    assert step(view_of(a_run(training(**ON), back)))["state"] == "Starting"


def test_new_settings_make_another_plan() -> None:
    planned = step(view_of(a_run(training())))
    settings = SETTINGS.model_copy(update={"trainer_image": "localhost/other:2"})
    assert step(view_of(a_run(training(**ON), planned), settings=settings))["state"] == "AwaitingConfirmation"


def test_a_freeze_holds_confirmed_runs() -> None:
    planned = step(view_of(a_run(training())))
    frozen = step(view_of(a_run(training(**ON), planned), settings=SETTINGS.model_copy(update={"frozen": True})))
    assert frozen["state"] == "Queued" and "startedAt" not in frozen
    assert step(view_of(a_run(training(**ON), frozen)))["state"] == "Starting"


def test_dry_run_alone_never_starts() -> None:
    planned = step(view_of(a_run(training())))
    assert step(view_of(a_run(training(dryRun=False), planned)))["state"] == "PlanReady"


def test_deciding_twice_changes_nothing() -> None:
    planned = step(view_of(a_run(training())))
    assert step(view_of(a_run(training(), planned), after=500)) == planned


def test_the_command_names_run_namespace_and_plan() -> None:
    planned = step(view_of(a_run(training())))
    command = planned["plan"]["confirmCommand"]  # type: ignore[index]
    assert command == f"mark confirm {KEY.name} -n {KEY.namespace} --plan {PLAN.hash}"
