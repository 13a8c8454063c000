"""The registry: versions by digest, promotion, and the AutoPipeline's choice."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mark_crds.registered_model import ModelVersion, RegisteredModelStatus
from mark_crds.shared import BaseModelReference
from mark_operator.messages import Note
from mark_operator.planning import plan
from mark_operator.registry.autopipeline import choose
from mark_operator.registry.decide import keep_current
from mark_operator.registry.versions import enter, with_current
from run_builders import KEY, SETTINGS, Body, evaluating, rendering_of

BASE = BaseModelReference(path="base/tiny")
EVAL = KEY._replace(kind="EvalRun")


def version(number: int, **changes: Any) -> ModelVersion:
    facts: Body = {
        "digest": f"{number:064x}",
        "path": f"adapters/{number}",
        "claimName": "workspace",
        "run": "contracts",
        "runUid": "1",
        "planHash": "ab" * 32,
        "base": "base/tiny",
        "created": f"2026-01-{1 + number % 28:02}T00:00:00Z",
    }
    return ModelVersion.model_validate({**facts, **changes})


def model(name: str, *versions: ModelVersion, current: str = "", **spec: Any) -> Body:
    status = RegisteredModelStatus(versions=versions, current=current).to_dict()
    metadata = {"name": name, "namespace": "legal", "resourceVersion": "1"}
    return {"metadata": metadata, "spec": {"family": "transformer", **spec}, "status": status}


@given(st.lists(st.integers(0, 20), max_size=60))
def test_entering_is_by_digest_and_keeps_the_last_ten(numbers: list[int]) -> None:
    status = RegisteredModelStatus()
    for number in numbers:
        status = enter(status, version(number))
        assert status == enter(status, version(number))
    digests = [item.digest for item in status.versions]
    assert len(digests) == len(set(digests)) <= 10
    assert not numbers or version(numbers[-1]).digest in digests


@given(st.lists(st.integers(0, 30), max_size=60), st.integers(0, 30))
def test_the_version_in_use_gives_way_to_none(numbers: list[int], promoted: int) -> None:
    status = RegisteredModelStatus()
    for number in [promoted, *numbers]:
        status = with_current(enter(status, version(number)), version(promoted).digest)
        assert status.current == version(promoted).digest
        assert any(item.digest == status.current for item in status.versions)


@pytest.mark.parametrize(
    ("promoted", "expected"),
    [("", 2), (version(1).digest, 1), (version(3).digest, 3), ("f" * 64, None)],
    ids=["newest that passed", "rolled back", "promoted by hand", "promoted, but unknown"],
)
def test_current(promoted: str, expected: int | None) -> None:
    versions = (version(1, passed=True), version(2, passed=True), version(3, passed=False))
    status = with_current(RegisteredModelStatus(versions=versions), promoted)
    assert status.current == (version(expected).digest if expected else "")


def test_a_model_follows_its_spec_and_then_rests() -> None:
    body = model("tuned", version(1, passed=True))
    write = keep_current(body)
    assert write is not None and write.status.current == version(1).digest
    assert keep_current({**body, "status": write.status.to_dict()}) is None


def test_the_autopipeline_prefers_the_newest_current_version_of_this_base() -> None:
    models = (
        model("old", version(1), current=version(1).digest),
        model("new", version(2), current=version(2).digest),
        model("other-base", version(9, base="base/else"), current=version(9).digest),
    )
    choice = choose(models, BASE)
    assert choice.model == "new" and choice.version == version(2) and "preferred" in choice.why


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ((), "no Model"),
        ((model("a", version(1), current=version(1).digest, preferRagFinetuned=False),), "preferRagFinetuned is false"),
        ((model("a", version(1)),), "no version is promoted"),
        ((model("a", version(1, base="base/x"), current=version(1).digest),), "its base is base/x"),
    ],
)
def test_the_autopipeline_falls_back_to_the_base_and_says_why(models: tuple[Body, ...], words: str) -> None:
    choice = choose(models, BASE)
    assert choice.version is None and words in choice.why


def test_an_evaluation_is_pinned_to_one_version() -> None:
    spec = evaluating(model={"name": "tuned"})
    first = rendering_of(spec, key=EVAL, models=(model("tuned", version(1)),))
    assert first.job_input.evaluated_model is not None
    assert first.job_input.evaluated_model.adapter_digest == version(1).digest
    assert rendering_of(spec, key=EVAL, models=(model("tuned", version(1), version(2)),)).hash != first.hash


@pytest.mark.parametrize(
    ("models", "reason"),
    [
        ((), "ModelNotFound"),
        ((model("tuned"),), "ModelWithoutVersion"),
        ((model("tuned", version(1, claimName="elsewhere")),), "ModelElsewhere"),
    ],
)
def test_an_evaluation_of_what_is_not_there_is_explained(models: tuple[Body, ...], reason: str) -> None:
    why = plan(EVAL, evaluating(model={"name": "tuned"}), SETTINGS, models)
    assert isinstance(why, Note) and why.reason == reason


def test_the_autopipelines_choice_stands_in_the_plan() -> None:
    rendering = rendering_of(evaluating(model={"auto": True}, baseModel={"path": "base/tiny"}), key=EVAL)
    assert rendering.job_input.evaluated_model is not None and rendering.job_input.evaluated_model.adapter_path is None
    assert any("AutoPipeline picks the base model" in warning for warning in rendering.warnings)


def test_many_models_fit_into_one_sentence_and_long_names_stay_whole() -> None:
    auto = evaluating(model={"auto": True}, baseModel={"path": "base/tiny"})
    many = tuple(model(f"model-{number:040}", version(1)) for number in range(100))
    assert max(map(len, rendering_of(auto, key=EVAL, models=many).warnings)) <= 1024
    name = "m" * 253
    rendering = rendering_of(evaluating(model={"name": name}), key=EVAL, models=(model(name, version(1)),))
    assert rendering.job_input.evaluated_model is not None and rendering.job_input.evaluated_model.name == name
