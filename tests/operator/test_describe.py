"""What a plan tells a person: upper bounds, what is written, what becomes of the registry, and what the hash does not bind."""

from typing import Any

import pytest
from mark_crds.registered_model import VERSIONS_KEPT
from mark_crds.run import PlanStatus
from mark_operator.run.describe import describe
from mark_operator.seen import RunKey
from run_builders import DIGEST, KEY, SETTINGS, Body, evaluating, rendering_of, training

PINNED = SETTINGS.model_copy(update={"trainer_image": f"localhost/mark-trainer@sha256:{DIGEST}"})
EVAL_KEY = RunKey("EvalRun", "legal", "check")
HUB = {"huggingFaceId": "org/tiny", "revision": "ab" * 20}


def told(spec: Body, models: tuple[Body, ...] = (), key: RunKey = KEY) -> PlanStatus:
    return describe(rendering_of(spec, PINNED, key, models), models)


def stage(plan: PlanStatus, name: str) -> Any:
    return next(item for item in plan.stages if item.stage == name)


def model(name: str, versions: int, promoted: str = "") -> Body:
    entries = [
        {
            "digest": f"{number:064x}",
            "path": f"adapters/{number:064x}",
            "claimName": "workspace",
            "run": "r",
            "runUid": "u",
            "planHash": DIGEST,
            "base": "base/tiny",
            "created": "2026-01-31T12:00:00Z",
        }
        for number in range(versions)
    ]
    head = {"name": name, "namespace": "legal"}
    spec = {"family": "transformer", "promotedVersion": promoted}
    return {"metadata": head, "spec": spec, "status": {"versions": entries, "current": promoted}}


def test_bounds_follow_from_the_spec() -> None:
    lora = {"epochs": 3, "batchSize": 4, "gradientAccumulationSteps": 8, "maxLength": 512}
    means = {"nodes": 2, "gpusPerNode": 4}
    plan = told(training(lora=lora, dataPrep={"maxSamples": 1001}, resources=means, activeDeadlineSeconds=5400))
    assert stage(plan, "lora").steps_at_most == 12, "3 * 1001 rows in steps of 32 on each of 8 GPUs"
    assert stage(plan, "lora").tokens_at_most == 3 * 1001 * 512
    assert stage(plan, "lora").gpu_hours_at_most == "12", "8 GPUs for an hour and a half"
    assert plan.gpu_hours_at_most == "12" and stage(plan, "dataPrep").gpu_hours_at_most is None


RLHF = {"enabled": True, "reward": {"epochs": 2, "batchSize": 4, "gradientAccumulationSteps": 2}, "ppo": {"steps": 9}}
TO_PPO = ["dataPrep", "lora", "reward", "ppo"]


def test_bounds_of_reward_and_ppo() -> None:
    means = {"nodes": 2, "gpusPerNode": 4}
    plan = told(training(stages=TO_PPO, rlhf=RLHF, dataPrep={"maxSamples": 1001}, resources=means))
    assert stage(plan, "reward").steps_at_most == 251, "2 * 1001 pairs in steps of 8, on one process"
    assert stage(plan, "ppo").steps_at_most == 9
    for name in ("reward", "ppo"):
        assert (stage(plan, name).nodes, stage(plan, name).gpus, stage(plan, name).gpu_hours_at_most) == (1, 1, "24")
    judged = told(training(stages=TO_PPO, rlhf={**RLHF, "preferences": {"path": "judged.jsonl"}}))
    assert stage(judged, "reward").steps_at_most is None, "nobody has counted the judgements"


def test_what_is_not_known_is_absent() -> None:
    plan = told(training(stages=["lora"], dataset={"path": "datasets/x"}))
    assert stage(plan, "lora").steps_at_most is None and stage(plan, "lora").tokens_at_most is None
    assert plan.gpu_hours_at_most is None, "no GPU is asked for"


def test_what_is_written() -> None:
    plan = told(training(stages=["ingest", "dataPrep", "lora", "reward", "ppo", "eval"]))
    assert [item.writes for item in plan.stages] == [
        (),
        ("chroma, collection pdf_docs",),
        ("datasets/<digest>",),
        ("adapters/<digest>",),
        ("reward-models/<digest>",),
        ("adapters/<digest>",),
        ("reports",),
    ]


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        ((), {"name": "tuned", "action": "Create"}),
        ((model("other", 3),), {"name": "tuned", "action": "Create"}),
        ((model("tuned", 2),), {"name": "tuned", "action": "AddVersion"}),
        ((model("tuned", 2, f"{1:064x}"),), {"name": "tuned", "action": "AddVersion", "version": f"{1:064x}"}),
        ((model("tuned", VERSIONS_KEPT),), {"name": "tuned", "action": "AddVersion", "drops": "0" * 64}),
        (
            (model("tuned", VERSIONS_KEPT, "0" * 64),),
            {"name": "tuned", "action": "AddVersion", "version": "0" * 64, "drops": f"{1:064x}"},
        ),
    ],
    ids=["none", "another", "without promoted", "with promoted", "full", "full, and the oldest promoted"],
)
def test_what_becomes_of_the_registry(models: tuple[Body, ...], expected: Body) -> None:
    plan = told(training(output={"model": "tuned"}), models)
    assert plan.model is not None and plan.model.to_dict() == expected
    assert plan.summary[-1].startswith("model: tuned, ")


def test_a_run_that_leaves_the_registry_alone_says_so() -> None:
    plan = told(training())
    assert plan.model is None and plan.summary[-1] == "model: the registry is left alone"


@pytest.mark.parametrize(
    ("stages", "enters"), [(["reward"], False), (["reward", "ppo"], True), (["lora", "reward"], True)]
)
def test_a_reward_model_alone_enters_nothing(stages: list[str], enters: bool) -> None:
    plan = told(training(stages=stages, dataset={"path": "datasets/x"}, output={"model": "tuned"}))
    assert (plan.model is not None) is enters


def test_an_evaluation_judges_a_version() -> None:
    plan = told(evaluating(model={"name": "tuned"}), (model("tuned", 2),), EVAL_KEY)
    assert plan.model is not None and plan.model.to_dict() == {
        "name": "tuned",
        "action": "Judge",
        "version": f"{1:064x}",
    }
    assert told(evaluating(), key=EVAL_KEY).model is None, "a path is in no registry"


@pytest.mark.parametrize(
    ("spec", "fields"),
    [
        (training(stages=["lora"], baseModel=HUB, dataset={"path": f"datasets/{DIGEST}"}), []),
        (training(stages=["lora"], baseModel=HUB, dataset={"path": "datasets/x"}), ["spec.dataset.path"]),
        (training(stages=["dataPrep", "lora"], baseModel=HUB), ["spec.dataPrep.collection"]),
        (training(stages=["ingest"]), ["spec.baseModel.path", "spec.ingest.path"]),
        (training(stages=["lora"], baseModel=HUB, dataset={"path": f"datasets/{DIGEST}"}, image="a:1"), ["spec.image"]),
        (
            training(stages=["reward"], baseModel=HUB, rlhf={"preferences": {"path": "judged.jsonl"}}),
            ["spec.rlhf.preferences.path"],
        ),
    ],
    ids=["all pinned", "dataset", "collection", "documents", "image", "judgements"],
)
def test_each_field_whose_content_is_not_bound_is_named(spec: Body, fields: list[str]) -> None:
    assert [sentence.split(":")[0] for sentence in told(spec).unpinned] == fields


def test_an_adapter_named_by_path_or_by_digest() -> None:
    base = {"dataset": {"path": f"datasets/{DIGEST}"}}
    by_path, by_digest = ({"path": path} for path in ("adapters/mine", f"adapters/{DIGEST}"))
    assert (
        told(evaluating(model=by_path, **base), key=EVAL_KEY).unpinned[0].startswith("spec.model.path: adapters/mine")
    )
    assert told(evaluating(model=by_digest, **base), key=EVAL_KEY).unpinned == ()


def test_a_tag_of_the_administrators_is_named_too() -> None:
    plan = describe(rendering_of(training(), SETTINGS), ())
    assert plan.unpinned[0].startswith("the setting trainerImage")


def test_the_summary_is_read_in_ten_seconds() -> None:
    spec = training(
        stages=["ingest", "dataPrep", "lora", "eval"], output={"model": "tuned"}, resources={"gpusPerNode": 2}
    )
    plan = told(spec, (model("tuned", VERSIONS_KEPT, f"{3:064x}"),))
    assert len(plan.summary) <= 12 and max(map(len, plan.summary)) <= 120
    assert (
        "lora: 1 node, 2 GPUs, at most 32 steps, 1,024,000 tokens, 48 GPU-hours; writes adapters/<digest>"
        in plan.summary
    )
