"""A plan's hash binds all that determines the Jobs, and nothing else."""

import json
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from mark_crds import names
from mark_crds.job_input import JobInput
from mark_crds.run import SWITCHES
from mark_operator.messages import Note
from mark_operator.planning import plan
from mark_operator.run.plan import Rendering, plan_digest, stored_jobs
from mark_operator.seen import RunKey
from mark_operator.settings import Settings
from run_builders import KEY, SETTINGS, SPECS, evaluating, rendering_of, training
from schema_specs import drawn, obeying

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "plans"
GOLDEN_SPECS = {
    "training-one-node": training(stages=["ingest", "dataPrep", "lora", "eval"], output={"model": "transformer-lora"}),
    "training-two-nodes": training(
        resources={"nodes": 2, "gpusPerNode": 4},
        queueName="research",
        nodeSelector={"pool": "gpu"},
        tolerations=[{"key": "gpu", "operator": "Exists"}],
        priorityClassName="high",
    ),
    "evaluation": evaluating(),
}


@pytest.mark.parametrize("name", GOLDEN_SPECS)
def test_plans_are_as_they_were(name: str) -> None:
    """A change here changes the hash of every plan that is not started yet. MARK_REFRESH_GOLDEN=1 writes the files anew."""
    spec = GOLDEN_SPECS[name]
    key = RunKey("EvalRun" if "model" in spec else "TrainingRun", KEY.namespace, KEY.name)
    rendering = rendering_of(spec, key=key)
    text = yaml.safe_dump(
        {"hash": rendering.hash, "jobInput": rendering.job_input.to_dict(), "jobs": list(rendering.jobs)},
        sort_keys=False,
    )
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("MARK_REFRESH_GOLDEN"):
        path.write_text(text)
    assert yaml.safe_load(path.read_text()) == yaml.safe_load(text)


@pytest.mark.parametrize(("kind", "plural"), [("TrainingRun", "trainingruns"), ("EvalRun", "evalruns")])
def test_every_spec_that_the_schema_allows_has_a_plan_that_its_jobs_can_read(kind: str, plural: str) -> None:
    key = RunKey(kind, KEY.namespace, KEY.name)
    for spec in (obeying(spec, plural) for spec in drawn(plural, 300)):
        rendering = plan(key, spec, SETTINGS)
        assert isinstance(rendering, Rendering) or rendering.reason == "ModelNotFound", (spec, rendering)
        if isinstance(rendering, Rendering):
            assert JobInput.model_validate_json(rendering.data[names.JOB_INPUT_KEY]) == rendering.job_input


# One other valid value for every field of a spec that is not a switch.
CHANGES = {
    "trainingRevision": "2",
    "workspace": {"claimName": "other"},
    "image": "localhost/other:1",
    "queueName": "research",
    "nodeSelector": {"a": "b"},
    "tolerations": [{"key": "a"}],
    "priorityClassName": "high",
    "terminationGracePeriodSeconds": 60,
    "activeDeadlineSeconds": 600,
    "stages": ["lora"],
    "baseModel": {"path": "base/other"},
    "ingest": {"path": "other"},
    "dataPrep": {"seed": 8},
    "lora": {"epochs": 2},
    "rlhf": {"enabled": True},
    "evaluation": {"rag": False},
    "resources": {"gpusPerNode": 1},
    "cpuResources": {"cpu": "3"},
    "output": {"model": "x"},
    "distributed": {"strategy": "deepspeedZero2"},
    "tracking": {"wandb": {"mode": "offline"}},
}
# Attempts and waiting times say how long to go on, not what runs; a dataset needs other stages, so it has a test of its own.
NOT_IN_JOBS = {"maxAttempts": 5, "pendingDeadlineSeconds": 60, "queueDeadlineSeconds": 60}


def test_every_field_is_accounted_for() -> None:
    fields = {str(field.alias) for field in SPECS["TrainingRun"].model_fields.values()}
    assert fields == set(CHANGES) | set(NOT_IN_JOBS) | set(SWITCHES) | {"dataset"}


@pytest.mark.parametrize("field", CHANGES)
def test_a_change_of_the_work_changes_the_hash(field: str) -> None:
    more = {"dataset": {"path": "datasets/x"}} if field == "stages" else {}
    assert rendering_of(training(**{field: CHANGES[field]}, **more)).hash != rendering_of(training()).hash


@pytest.mark.parametrize(
    "switches",
    [
        {"dryRun": False},
        {"dryRun": False, "confirm": True},
        {"confirmPlan": "ab" * 32},
        {"confirmedBy": "alice"},
        {"suspend": True},
        {"ttlSecondsAfterFinished": 5},
    ],
    ids=lambda switches: "+".join(switches),
)
def test_a_switch_changes_nothing(switches: dict[str, object]) -> None:
    confirmed, plain = rendering_of(training(**switches)), rendering_of(training())
    assert confirmed.hash == plain.hash and confirmed.job_input.replay_key == plain.job_input.replay_key


@pytest.mark.parametrize(
    "key", [KEY._replace(name="other"), KEY._replace(namespace="other")], ids=["name", "namespace"]
)
def test_another_run_has_another_plan(key: RunKey) -> None:
    other, mine = rendering_of(training(), key=key), rendering_of(training())
    assert other.hash != mine.hash and other.job_input.replay_key != mine.job_input.replay_key


@pytest.mark.parametrize("spelling", ["2e-4", "0.0002", "0.00020"])
def test_a_number_has_one_spelling(spelling: str) -> None:
    other = rendering_of(training(lora={"epochs": 1, "learningRate": spelling}))
    assert other.hash == rendering_of(training()).hash


# Settings that reach a Job, and some that do not.
REACHING = {
    "trainer_image": "localhost/other:2",
    "trainer_image_pull_policy": "Always",
    "trainer_image_pull_secrets": ("pull",),
    "service_account_name": "trainer",
    "run_as_user": 2000,
    "runtime_class_name": "nvidia",
    "progress_url": None,
}


@pytest.mark.parametrize("field", REACHING)
def test_a_setting_that_reaches_a_job_changes_the_hash_but_never_the_replay_key(field: str) -> None:
    changed = rendering_of(training(), SETTINGS.model_copy(update={field: REACHING[field]}))
    assert changed.hash != rendering_of(training()).hash
    assert changed.job_input.replay_key == rendering_of(training()).job_input.replay_key


def test_other_settings_change_nothing() -> None:
    changes = {
        "approval": "PlanHash",
        "frozen": True,
        "plan_expiry_seconds": 5,
        "dry_run_pods": False,
        "log_level": "DEBUG",
    }
    assert rendering_of(training(), SETTINGS.model_copy(update=changes)).hash == rendering_of(training()).hash


def test_the_replay_key_ignores_what_equals_a_default_and_obeys_the_revision() -> None:
    key = rendering_of(training()).job_input.replay_key
    explicit = training(maxAttempts=3, lora={"epochs": 1, "rank": 16, "dropout": "0.050"}, dataPrep={"seed": 7})
    assert rendering_of(explicit).job_input.replay_key == key
    assert rendering_of(training(trainingRevision="2")).job_input.replay_key != key
    assert rendering_of(training(lora={"epochs": 1, "rank": 8})).job_input.replay_key != key


@given(
    rank=st.integers(1, 1024),
    nodes=st.integers(1, 64),
    stages=st.sampled_from([["ingest"], ["dataPrep"], ["dataPrep", "lora"], ["ingest", "dataPrep", "lora", "eval"]]),
    rate=st.decimals("0.000001", "1", places=6).map(str),
)
def test_equal_work_renders_to_equal_bytes_and_survives_storing(
    rank: int, nodes: int, stages: list[str], rate: str
) -> None:
    spec = training(stages=stages, lora={"epochs": 1, "rank": rank, "learningRate": rate}, resources={"nodes": nodes})
    first, second = rendering_of(spec), rendering_of(json.loads(json.dumps(spec)))
    assert first.data == second.data and first.hash == second.hash == plan_digest(first.data)
    assert stored_jobs({"data": first.data}) == first.jobs
    assert JobInput.model_validate_json(first.data["job-input.json"]) == first.job_input


def test_the_certificate_beside_a_plan_is_not_part_of_it() -> None:
    data = rendering_of(training()).data
    assert plan_digest({**data, "ca.crt": "x"}) == plan_digest(data)
    assert plan_digest({**data, "jobs.json": data["jobs.json"] + " "}) != plan_digest(data)


def test_a_spec_that_cannot_be_used_is_explained_by_field() -> None:
    spec = {**training(), "lora": {"epochs": 1, "rank": 0}, "stages": ["lora"], "surprise": 1}
    why = plan(KEY, spec, Settings())
    assert isinstance(why, Note) and why.reason == "InvalidSpec"
    assert "spec.lora.rank" in why.message and "spec.surprise" in why.message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora": {"epochs": 0}}, "spec.lora.epochs is 0"),
        ({"stages": ["dataPrep", "lora", "ppo"]}, "spec.rlhf.enabled is false"),
        ({"stages": ["dataPrep", "reward"]}, "spec.rlhf.reward.epochs is 0"),
        ({"stages": ["dataPrep", "reward"]}, "pairs made by rules, not from what people judged"),
        ({"stages": ["dataPrep", "reward", "ppo"]}, "spec.rlhf.ppo.steps is 0"),
        ({"stages": ["dataPrep", "lora", "ppo"]}, "spec.stages has ppo without reward"),
        ({"stages": ["dataPrep", "reward"], "resources": {"gpusPerNode": 2}}, "each runs as one process"),
        ({"stages": ["dataPrep", "reward", "ppo"]}, "spec.output.model is not set"),
        ({}, "spec.output.model is not set"),
        ({}, "CPU"),
    ],
)
def test_warnings(changes: dict[str, object], words: str) -> None:
    assert any(words in warning for warning in rendering_of(training(**changes)).warnings)


def test_no_warning_where_nothing_is_odd() -> None:
    rlhf = {"enabled": True, "reward": {"epochs": 1}, "ppo": {"steps": 1}, "preferences": {"path": "judged.jsonl"}}
    stages = ["dataPrep", "lora", "reward", "ppo", "eval"]
    spec = training(stages=stages, rlhf=rlhf, resources={"gpusPerNode": 1}, output={"model": "x"})
    assert rendering_of(spec).warnings == ()
