"""The hash changes when, and only when, a rendered Job or the Job input does: thousands of random single changes of specs and settings."""

import random

import pytest
from mark_crds.model import Model
from mark_operator.messages import Note
from mark_operator.planning import plan
from mark_operator.run.objects import bind
from mark_operator.run.plan import Rendering, stored_jobs
from mark_operator.seen import RunKey
from mark_operator.settings import Settings
from random_changes import changed_once, is_valid, random_model
from run_builders import SETTINGS, SPECS, UID, Body, evaluating, training

pytestmark = pytest.mark.slow

CHANGES = 1000
BASES = {"TrainingRun": training, "EvalRun": evaluating}
ON_A_DATASET = training(stages=["lora", "eval"], dataset={"path": "datasets/x"})


def rendered(kind: str, spec: Body, settings: Settings) -> Rendering:
    found = plan(RunKey(kind, "legal", "contracts"), spec, settings)
    assert not isinstance(found, Note), found
    return found


def what_runs(rendering: Rendering) -> tuple[object, ...]:
    """Every Job as it would be created, and the file that each of them reads."""
    jobs = stored_jobs({"data": rendering.data})
    made = [bind(job, kind=rendering.means.key.kind, uid=UID, attempt=attempt) for job in jobs for attempt in (1, 2)]
    return made, rendering.data["job-input.json"]


def check(kind: str, before: tuple[Body, Settings], after: tuple[Body, Settings]) -> bool:
    """Compare two plans; whether anything that runs is another."""
    first, second = rendered(kind, *before), rendered(kind, *after)
    differs = what_runs(first) != what_runs(second)
    assert differs == (first.hash != second.hash), (before, after)
    assert before[0] != after[0] or first.job_input.replay_key == second.job_input.replay_key, (
        "a setting changed the replay key"
    )
    return differs


def _spec(kind: str, number: int, dice: random.Random) -> Body:
    """Now and then a random one; else a small usual one, of which most changes are valid."""
    if number % 5 == 0:
        return random_spec(kind, dice)
    return ON_A_DATASET if kind == "TrainingRun" and number % 5 == 1 else BASES[kind]()


def random_spec(kind: str, dice: random.Random) -> Body:
    """A random valid spec that can be planned without a registry."""
    while True:
        drawn = random_model(SPECS[kind], dice)
        spec = {**BASES[kind](), **{key: value for key, value in drawn.items() if dice.random() < 0.5}}
        if plannable(kind, spec):
            return spec


def plannable(kind: str, spec: Body) -> bool:
    return is_valid(SPECS[kind], spec) and (kind == "TrainingRun" or "path" in spec["model"])


def valid_change(body: Body, model: type[Model], dice: random.Random, kind: str = "") -> tuple[str, Body]:
    while True:
        path, changed = changed_once(body, model, dice)
        if plannable(kind, changed) if kind else is_valid(model, changed):
            return path, changed


@pytest.mark.parametrize("kind", SPECS)
def test_a_change_of_the_spec(kind: str) -> None:
    dice, touched, altered = random.Random(f"spec {kind}"), set(), 0
    for number in range(CHANGES):
        spec = _spec(kind, number, dice)
        path, changed = valid_change(spec, SPECS[kind], dice, kind)
        touched.add(path.split(".")[0])
        altered += check(kind, (spec, SETTINGS), (changed, SETTINGS))
    assert touched == {str(field.alias) for field in SPECS[kind].model_fields.values()}, "a field was never changed"
    assert CHANGES * 0.2 < altered < CHANGES * 0.9, "both kinds of change must be among them"


@pytest.mark.parametrize("kind", SPECS)
def test_a_change_of_the_settings(kind: str) -> None:
    dice, touched, altered = random.Random(f"settings {kind}"), set(), 0
    for number in range(CHANGES // 2):
        spec = _spec(kind, number, dice)
        path, changed = valid_change(SETTINGS.to_dict(), Settings, dice)
        touched.add(path.split(".")[0])
        altered += check(kind, (spec, SETTINGS), (spec, Settings.model_validate(changed)))
    assert touched == {str(field.alias) for field in Settings.model_fields.values()}, "a setting was never changed"
    assert altered > CHANGES // 2 * 0.1


@pytest.mark.parametrize("kind", SPECS)
def test_the_manifest_as_written_and_as_stored_have_one_hash(kind: str) -> None:
    """What a person wrote, rendered offline, and what the API server stored, with every default filled in."""
    dice = random.Random(f"stored {kind}")
    for _ in range(CHANGES // 4):
        written = random_spec(kind, dice)
        stored = SPECS[kind].model_validate(written).to_dict()
        assert rendered(kind, written, SETTINGS).hash == rendered(kind, stored, SETTINGS).hash
