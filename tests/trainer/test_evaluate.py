"""The stage eval: every number of the report can be recomputed from the lines beside it; other models are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import recomputed
import tiny_training
from mark_crds.job_output import MEASURES_KEPT, Artifact, Result
from mark_trainer import evaluate, lora, prompts
from mark_trainer.base_model import load_tokenizer
from mark_trainer.dataset import encode_rows, read_rows
from mark_trainer.failures import BadData, Stopped, UserMistake
from mark_trainer.likelihood import UNIGRAM_FILE, Unigram
from mark_trainer.outcome import keep_result, termination_message
from mark_trainer.prompts import PromptBuilder
from mark_trainer.publish import file_digest
from mark_trainer.workspace import Workspace, write_json

pytestmark = pytest.mark.slow

JOB = tiny_training.job_input(lora={"epochs": 4}, evaluation={"maxItems": 20})


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """With an adapter that the stage lora has trained."""
    workspace = tiny_training.write_workspace(tmp_path_factory.mktemp("workspace"))
    parts = [
        tiny_training.rows(documents, split) + tiny_training.unanswerable_rows(documents, split)
        for documents, split in ((range(100, 108), "train"), (range(108, 112), "validation"))
    ]
    for row in parts[1]:
        if row["document"]["digest"] == f"{111:064x}" and row["span"]:
            row["oraclePassage"] = next(passage for passage in row["contexts"] if passage["oracle"])
            row["contexts"] = [passage | {"oracle": False} for passage in parts[1][0]["contexts"]]  # a miss
    tiny_training.write_dataset(workspace.path("datasets/contracts"), *parts)
    work = tiny_training.work_of(workspace, JOB)
    keep_result(work, lora.run(work))
    return workspace


@pytest.fixture(scope="module")
def adapter(workspace: Workspace) -> Artifact:
    result = tiny_training.work_of(workspace, JOB).result_of("lora")
    assert result is not None
    return result.artifacts[0]


@pytest.fixture(scope="module")
def result(workspace: Workspace, adapter: Artifact) -> Result:
    return evaluate.run(tiny_training.work_of(workspace, JOB, stage="eval"))


@pytest.fixture(scope="module")
def report(workspace: Workspace, result: Result) -> dict[str, Any]:
    return json.loads(workspace.path(path_of(result, "report")).read_text())


@pytest.fixture(scope="module")
def lines(workspace: Workspace, result: Result) -> list[dict[str, Any]]:
    text = workspace.path(path_of(result, "predictions")).read_text()
    return [json.loads(line) for line in text.splitlines()]


def path_of(result: Result, kind: str) -> str:
    return next(artifact.path for artifact in result.artifacts if artifact.kind == kind)


def eval_run(adapter: Artifact | None, **changes: Any) -> Any:
    measured = {"name": "contracts-lora"}
    if adapter is not None:
        measured |= {"adapterPath": adapter.path, "adapterDigest": adapter.digest}
    changes = {"evaluation": {"maxItems": 20}, **changes}
    return tiny_training.job_input(kind="EvalRun", stages=["eval"], evaluatedModel=measured, **changes)


def test_the_grid_is_base_and_tuned_without_and_with_passages(lines: list[dict[str, Any]]) -> None:
    cells = {(line["model"], line["condition"]) for line in lines}
    assert cells == {(model, form) for model in ("base", "tuned") for form in ("closedBook", "retrieved", "oracle")}
    assert len(lines) == 2 * (20 + 20 + 16)  # without an answer there is no right passage
    for line in lines:
        assert len(line["passages"]) == {"closedBook": 0, "retrieved": 2, "oracle": 1}[line["condition"]]
        assert line["document"]["digest"] and bool(line["span"]) == line["answerable"]


def test_every_number_can_be_recomputed_from_the_predictions(
    report: dict[str, Any], lines: list[dict[str, Any]], result: Result
) -> None:
    """By code that shares nothing with the trainer's."""
    again = recomputed.report(lines)
    assert again.keys() == {"scores", "answerNats", "retrieval", "abstention", "citations", "errors"}
    differences = list(recomputed.differing({name: report[name] for name in again}, again))
    assert not differences
    measures = {measure.name: float(measure.value) for measure in result.measures}
    assert measures["nllDifference"] == pytest.approx(again["answerNats"]["retrieved"]["difference"]["value"], rel=1e-5)
    assert measures["tuned.retrieved.f1"] == pytest.approx(
        again["scores"]["tuned"]["retrieved"]["f1"]["value"], rel=1e-5
    )
    assert measures["tuned.retrieved.retrievalRecall"] == 0.75


def test_tuning_shows_in_the_likelihoods(report: dict[str, Any]) -> None:
    for values in report["answerNats"].values():
        assert values["difference"]["clusters"] == 4
        assert values["difference"]["high"] < 0  # it learned the form of the answers


def test_every_part_adds_up_to_the_questions_asked(report: dict[str, Any]) -> None:
    for model in ("base", "tuned"):
        for condition, items in (("closedBook", 20), ("retrieved", 20), ("oracle", 16)):
            assert report["scores"][model][condition]["items"] == items
            cited = report["citations"][model][condition]
            assert sum(cited[state] for state in ("verified", "repaired", "unverified", "unchecked")) == items
            table = report["abstention"][model][condition]
            assert sum(table["answerable"].values()) == 16
            assert sum(table["unanswerable"].values()) == items - 16
            if condition != "closedBook":
                parts = report["errors"][model][condition]
                assert parts["items"] == items == sum(parts.values()) - items
        # Retrieval missed the four questions of one document; nothing is missed when the right passage is given.
        assert report["errors"][model]["oracle"]["retrievalMissed"] == 0
        assert report["errors"][model]["retrieved"]["retrievalMissed"] <= 4


def test_prompts_are_those_of_training_token_by_token(workspace: Workspace) -> None:
    rows = read_rows(workspace.path("datasets/contracts"), "val_sft.jsonl")
    builder = PromptBuilder(load_tokenizer(workspace.path("base/tiny")), 180)
    trained = {example.row.id: example for example in encode_rows(rows, builder, max_length=200, seed=7).examples}
    forms = {example.form for example in trained.values()}
    assert forms == {"closedBook", "retrieved"}
    for form in forms:
        for item in evaluate.ask(rows, builder, form):
            example = trained[item.row.id]
            if example.form == form:
                assert example.ids == item.prompt.ids + builder.answer(item.row.answer)


def test_the_report_names_all_that_is_needed_to_repeat_it(
    workspace: Workspace, report: dict[str, Any], adapter: Artifact, result: Result
) -> None:
    assert report["adapter"] == {"path": adapter.path, "digest": adapter.digest}
    assert report["dataset"]["path"] == "datasets/contracts" and report["dataset"]["leftOut"] == 0
    assert report["predictions"]["digest"] == file_digest(workspace.path(report["predictions"]["path"]))
    assert report["bleuSignature"] and report["versions"]["torch"] and report["settings"]["maxNewTokens"] == 12
    assert report["retrieval"]["hitRate"]["value"] == 0.75
    assert report["formatVersion"] == 2
    for artifact in result.artifacts:
        assert file_digest(workspace.path(artifact.path)) == artifact.digest
        assert artifact.path.startswith("reports/eval_contracts-lora_")


def test_the_page_stands_alone_and_shows_both_models(workspace: Workspace, result: Result) -> None:
    page = workspace.path(path_of(result, "page")).read_text()
    assert "<svg" in page and "<th>base</th><th>tuned</th>" in page
    assert "http" not in page and "src=" not in page


def test_the_result_fits_the_termination_message(result: Result) -> None:
    assert len(result.measures) <= MEASURES_KEPT
    assert json.loads(termination_message(result)) == result.to_dict()
    assert all(float(measure.value) == float(measure.value) for measure in result.measures)


def test_an_eval_run_measures_the_same_numbers(workspace: Workspace, adapter: Artifact, result: Result) -> None:
    """Under its own kind, with the base model taken from the adapter's manifest."""
    other = evaluate.run(tiny_training.work_of(workspace, eval_run(adapter, baseModel=None), stage="eval", uid="run-2"))

    def numbers(found: Result) -> dict[str, str]:
        return {measure.name: measure.value for measure in found.measures if measure.name != "seconds"}

    assert numbers(other) == numbers(result)
    digests = [{artifact.kind: artifact.digest for artifact in found.artifacts} for found in (other, result)]
    assert digests[0]["predictions"] == digests[1]["predictions"]  # byte by byte


def test_without_an_adapter_the_base_is_measured_alone(workspace: Workspace) -> None:
    job = eval_run(None, evaluation={"rag": False, "maxItems": 5, "metrics": ["f1"]})
    found = evaluate.run(tiny_training.work_of(workspace, job, stage="eval", uid="run-3"))
    names = {measure.name for measure in found.measures}
    assert names == {"base.closedBook.f1", "baseNats", "unigramNats", "seconds"}
    document = json.loads(workspace.path(path_of(found, "report")).read_text())
    assert document["scores"]["base"]["closedBook"]["items"] == 5
    assert document["heldOutText"]["unigramFittedOn"] == "the passages of the training rows"


def test_the_unigram_beside_the_base_model_is_used(tmp_path: Path) -> None:
    workspace = tiny_training.write_workspace(tmp_path / "workspace")
    uniform = Unigram(tuple([5] * 458))
    (workspace.path("base/tiny") / UNIGRAM_FILE).write_text(json.dumps(uniform.to_dict()))
    job = eval_run(None, evaluation={"rag": False, "maxItems": 2, "maxNewTokens": 2})
    found = evaluate.run(tiny_training.work_of(workspace, job, stage="eval"))
    document = json.loads(workspace.path(path_of(found, "report")).read_text())
    assert document["heldOutText"]["unigramFittedOn"] == "the base model's own training text"


def test_another_prompt_template_is_refused(
    workspace: Workspace, adapter: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "ANSWER_OPENING", "\nA:")
    with pytest.raises(BadData, match="OtherTemplate"):
        evaluate.run(tiny_training.work_of(workspace, eval_run(adapter), stage="eval"))


def test_another_base_model_is_refused(workspace: Workspace, adapter: Artifact) -> None:
    tiny_training.write_base(workspace.path("base/other"), seed=2)
    with pytest.raises(BadData, match="base/other is not what adapters"):
        evaluate.run(
            tiny_training.work_of(workspace, eval_run(adapter, baseModel={"path": "base/other"}), stage="eval")
        )


def test_another_adapter_is_refused(workspace: Workspace, adapter: Artifact) -> None:
    other = adapter.model_copy(update={"digest": "f" * 64})
    with pytest.raises(BadData, match="OtherAdapter"):
        evaluate.run(tiny_training.work_of(workspace, eval_run(other), stage="eval"))


def test_too_many_new_tokens_are_named(workspace: Workspace, adapter: Artifact) -> None:
    with pytest.raises(UserMistake, match=r"evaluation\.maxNewTokens: .* of the 256"):
        job = eval_run(adapter, evaluation={"maxNewTokens": 250})
        evaluate.run(tiny_training.work_of(workspace, job, stage="eval"))


def test_a_stop_is_heard_between_batches(workspace: Workspace, adapter: Artifact) -> None:
    work = tiny_training.work_of(workspace, eval_run(adapter), stage="eval")
    work.stop.set()
    with pytest.raises(Stopped):
        evaluate.run(work)


def test_a_tampered_adapter_is_refused(tmp_path: Path, workspace: Workspace, adapter: Artifact) -> None:
    copy = Workspace(_copied(workspace.root, tmp_path / "copy"))
    write_json(copy.path(adapter.path) / "adapter_config.json", {})
    with pytest.raises(BadData, match=r"adapter_config\.json: differs"):
        evaluate.run(tiny_training.work_of(copy, eval_run(adapter), stage="eval"))


def _copied(source: Path, target: Path) -> Path:
    import shutil

    shutil.copytree(source, target)
    return target
