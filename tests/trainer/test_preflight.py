"""Everything that can be known before a GPU is asked for: each problem once, with the field or file and the cure."""

import ast
import json
import re
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mark_trainer import preflight
from mark_trainer.failures import BadData, Failure, MachineTrouble, UserMistake
from mark_trainer.locks import hold
from mark_trainer.model_files import TRAINABLE_FAMILIES
from mark_trainer.publish import publish
from mark_trainer.workspace import Work
from pypdf import PdfWriter

pytestmark = pytest.mark.slow

MakeWork = Callable[..., Work]
WritePdf = Callable[[Path, str, str], Path]
MODEL = {"baseModel": {"path": "base/tiny"}}


def write_model(root: Path, **config: Any) -> Path:
    """A folder that looks like a model: right files, no sense in the numbers."""
    folder = root / "base" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 2048} | config))
    header = json.dumps({"weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 8)
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def whole(make_work: MakeWork, write_pdf: WritePdf) -> Callable[..., Work]:
    """A run of all stages in a workspace where nothing is missing."""

    def make(**parts: Any) -> Work:
        work = make_work("preflight", **({"stages": ["ingest", "dataPrep", "lora", "eval"]} | MODEL | parts))
        root = work.workspace.root
        if not (root / "base").exists():
            write_model(root)
            write_pdf(root / "corpus" / "lease.pdf", "Lease", "The tenant pays the rent.")
        return work

    return make


def failure_of(work: Work) -> Failure:
    with pytest.raises(Failure) as caught:
        preflight.run(work)
    return caught.value


def test_a_whole_workspace_passes_in_seconds_and_tells_what_is_there(whole: Callable[..., Work]) -> None:
    started = time.monotonic()
    result = preflight.run(whole())
    assert time.monotonic() - started < 20
    facts = {measure.name: measure.value for measure in result.measures}
    assert result.outcome == "Done" and facts["pdfFiles"] == "1" and facts["modelFamily"] == "llama"


HARMS: dict[str, tuple[Callable[[Path], Any], type[Failure], str, str]] = {
    "no corpus": (
        lambda root: (root / "corpus").rename(root / "papers"),
        UserMistake,
        "NoCorpus",
        "ingest.path: there is no folder corpus in the workspace; make it with `mark put DIR corpus`, .*papers",
    ),
    "empty corpus": (
        lambda root: (root / "corpus" / "lease.pdf").unlink(),
        UserMistake,
        "EmptyCorpus",
        "no PDF file in folder corpus of the workspace; put some with `mark put DIR corpus`",
    ),
    "no pdf": (
        lambda root: (root / "corpus" / "lease.pdf").write_text("notes"),
        BadData,
        "NotPdf",
        "corpus/lease.pdf: is no PDF file; remove it from the corpus or convert it",
    ),
    "no model": (
        lambda root: (root / "base" / "tiny").rename(root / "base" / "small"),
        UserMistake,
        "NoBaseModel",
        "baseModel.path: there is no folder base/tiny in the workspace; base has the folders small",
    ),
    "no config": (
        lambda root: (root / "base" / "tiny" / "config.json").unlink(),
        UserMistake,
        "NoModelConfig",
        "base/tiny has no config.json; copy the whole model folder",
    ),
    "config is no JSON": (
        lambda root: (root / "base" / "tiny" / "config.json").write_text("{"),
        BadData,
        "InvalidJson",
        "base/tiny/config.json: is no JSON",
    ),
    "unknown family": (
        lambda root: (root / "base" / "tiny" / "config.json").write_text('{"model_type": "bert"}'),
        UserMistake,
        "UnknownModelFamily",
        "base/tiny is of family bert, and this trainer knows .*; choose another base model",
    ),
    "foreign code": (
        lambda root: (root / "base" / "tiny" / "config.json").write_text(
            '{"model_type": "llama", "auto_map": {"a": "b"}}'
        ),
        UserMistake,
        "ForeignCode",
        "wants to run code of its own",
    ),
    "pickles only": (
        lambda root: (root / "base" / "tiny" / "model.safetensors").rename(
            root / "base" / "tiny" / "pytorch_model.bin"
        ),
        UserMistake,
        "NoSafetensors",
        "has no .safetensors file but pytorch_model.bin, .* save the model as safetensors",
    ),
    "cut weights": (
        lambda root: (root / "base" / "tiny" / "model.safetensors").write_bytes(
            (root / "base" / "tiny" / "model.safetensors").read_bytes()[:-3]
        ),
        BadData,
        "WeightsBroken",
        "base/tiny/model.safetensors: is cut off or no safetensors file; copy it again",
    ),
    "missing shard": (
        lambda root: (root / "base" / "tiny" / "model.safetensors.index.json").write_text(
            '{"weight_map": {"a": "model-00002-of-00002.safetensors"}}'
        ),
        BadData,
        "WeightsMissing",
        "model-00002-of-00002.safetensors is missing, 1 in all; copy the model again",
    ),
    "no tokenizer": (
        lambda root: (root / "base" / "tiny" / "tokenizer.json").unlink(),
        UserMistake,
        "NoTokenizer",
        "base/tiny has no tokenizer.json; copy the tokenizer's files",
    ),
}


@pytest.mark.parametrize("harm", HARMS)
def test_what_is_missing_is_named_with_its_cure(whole: Callable[..., Work], harm: str) -> None:
    change, kind, reason, words = HARMS[harm]
    work = whole()
    change(work.workspace.root)
    failure = failure_of(work)
    assert type(failure) is kind and failure.reason == reason
    assert re.search(words, failure.message), failure.message


def test_an_encrypted_pdf_is_named_before_any_gpu_is_asked_for(whole: Callable[..., Work]) -> None:
    work = whole(ingest={"onBadFile": "Fail"})
    corpus = work.workspace.root / "corpus"
    writer = PdfWriter(clone_from=corpus / "lease.pdf")
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(corpus / "secret.pdf")
    failure = failure_of(work)
    assert failure.reason == "EncryptedPdf" and "corpus/secret.pdf: is encrypted; save a copy" in failure.message
    assert not (work.workspace.root / "chroma").exists()
    # Beside usable files it may be left out, and preflight says so.
    result = preflight.run(whole())
    assert "ingest will leave out 1 of 2 files: corpus/secret.pdf: is encrypted; save a copy" in result.message
    assert {measure.name: measure.value for measure in result.measures}["leftOutFiles"] == "1"


def test_all_problems_are_told_at_once_and_mistakes_come_first(whole: Callable[..., Work]) -> None:
    work = whole()
    (work.workspace.root / "corpus" / "lease.pdf").write_text("notes")
    (work.workspace.root / "base" / "tiny" / "tokenizer.json").unlink()
    failure = failure_of(work)
    assert isinstance(failure, UserMistake) and failure.reason == "NoTokenizer"
    assert failure.message.startswith("2 problems: (1) baseModel.path") and "(2) corpus/lease.pdf" in failure.message


def test_rows_longer_than_the_model_reads(whole: Callable[..., Work]) -> None:
    failure = failure_of(whole(lora={"maxLength": 4096}))
    assert failure.reason == "TooLong"
    assert "lora.maxLength: is 4096, and the base model reads 2048 tokens at most" in failure.message


def test_a_collection_that_the_run_does_not_make_must_be_there(whole: Callable[..., Work]) -> None:
    failure = failure_of(whole(stages=["dataPrep", "lora"]))
    assert failure.reason == "NoCollection"
    assert "no collection pdf_docs in chroma: add ingest to spec.stages" in failure.message


def test_a_collection_that_is_there_passes(
    ingested: Path, copy_of: Callable[[Path], Path], make_work: MakeWork
) -> None:
    root = copy_of(ingested)
    result = preflight.run(make_work("preflight", root=root, stages=["dataPrep"]))
    assert any(measure.name == "collectionDigest" for measure in result.measures)
    with pytest.raises(UserMistake, match="there are: pdf_docs"):
        preflight.run(make_work("preflight", root=root, stages=["dataPrep"], dataPrep={"collection": "contracts"}))


def test_a_collection_in_use_is_waited_for(
    ingested: Path, copy_of: Callable[[Path], Path], make_work: MakeWork
) -> None:
    root = copy_of(ingested)
    with hold(make_work("ingest", root=root, run_uid="other"), "chroma-chroma", 0):
        result = preflight.run(make_work("preflight", root=root))
    assert "in use by run legal/contracts (uid other), stage ingest; this run waits for it" in result.message


def test_a_chroma_server_that_does_not_answer(whole: Callable[..., Work]) -> None:
    failure = failure_of(whole(dataPrep={"chroma": {"server": {"host": "127.0.0.1", "port": 1}}}))
    assert isinstance(failure, MachineTrouble) and "127.0.0.1:1 does not answer" in failure.message


def test_a_dataset_must_be_there_and_unchanged(whole: Callable[..., Work]) -> None:
    parts = {"stages": ["lora"]} | MODEL
    assert (
        "dataset.path: there is no folder datasets/x"
        in failure_of(whole(dataset={"path": "datasets/x"}, **parts)).message
    )
    work = whole(**parts)
    folder = work.workspace.staging_folder("run-0", "dataset")
    for name in preflight.DATASET_FILES:
        (folder / name).write_text("{}\n")
    published = publish(work.workspace, folder, "datasets", {})
    assert preflight.run(whole(dataset={"path": published.path}, **parts)).outcome == "Done"
    (work.workspace.path(published.path) / "manifest.json").rename(work.workspace.root / "manifest.json")
    failure = failure_of(whole(dataset={"path": published.path}, **parts))
    assert failure.reason == "NotPublished" and "has no manifest.json; it was not written whole" in failure.message
    (work.workspace.root / "manifest.json").rename(work.workspace.path(published.path) / "manifest.json")
    (work.workspace.path(published.path) / "val_sft.jsonl").write_text("other\n")
    failure = failure_of(whole(dataset={"path": published.path}, **parts))
    assert failure.reason == "DigestDiffers" and "val_sft.jsonl: differs from manifest.json" in failure.message
    (work.workspace.path(published.path) / "val_sft.jsonl").unlink()
    assert "has no val_sft.jsonl; run dataPrep" in failure_of(whole(dataset={"path": published.path}, **parts)).message


def test_judgements_are_read_before_any_gpu_is_asked_for(whole: Callable[..., Work]) -> None:
    rlhf = {"enabled": True, "reward": {"epochs": 1}}
    stages = ["ingest", "dataPrep", "lora", "reward"]
    by_rules = preflight.run(whole(stages=stages, rlhf=rlhf))
    assert "reward will learn from pairs made by rules, not from what people judged" in by_rules.message
    work = whole(stages=stages, rlhf={**rlhf, "preferences": {"path": "judged.jsonl"}})
    failure = failure_of(work)
    assert (type(failure), failure.reason) == (UserMistake, "NoPreferences")
    lines = [{"question": f"Who pays {n}?", "chosen": "The tenant", "rejected": "Nobody"} for n in range(3)]
    file = work.workspace.root / "judged.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    facts = {measure.name: measure.value for measure in preflight.run(work).measures}
    assert facts["judgements"] == "3" and len(facts["judgementsDigest"]) == 16
    file.write_text(file.read_text() + "{}\n")
    failure = failure_of(work)
    assert (type(failure), failure.reason) == (BadData, "BadJudgement")
    assert "judged.jsonl line 4: question: Field required" in failure.message


def test_an_adapter_must_have_the_digest_that_was_registered(whole: Callable[..., Work]) -> None:
    work = whole()
    folder = work.workspace.staging_folder("run-0", "adapter")
    (folder / "adapter_model.safetensors").write_text("weights")
    published = publish(work.workspace, folder, "adapters", {})

    def evaluating(path: str, digest: str) -> Work:
        model = {"name": "m", "adapterPath": path, "adapterDigest": digest}
        return whole(kind="EvalRun", stages=["eval"], evaluatedModel=model, **MODEL)

    assert preflight.run(evaluating(published.path, published.digest)).outcome == "Done"
    assert "copy the adapter back" in failure_of(evaluating(published.path, "0" * 64)).message
    assert "there is no adapter folder adapters/x" in failure_of(evaluating("adapters/x", "0" * 64)).message


@pytest.mark.parametrize(
    ("contexts", "most", "collection"),
    [
        ([[{}, {}, {}]] * 3, 3, False),
        ([[{}, {}, {}, {}], None, None], 1, False),  # only one is measured
        ([[{}, {}, {}], [{}, {}]], 3, True),
        ([[{}, {}, {}], None], 3, True),
        ([[]], 3, True),
    ],
)
def test_rows_that_record_too_few_passages_need_the_collection(
    whole: Callable[..., Work], contexts: list[Any], most: int, collection: bool
) -> None:
    work = whole()
    folder = work.workspace.staging_folder("run-0", "dataset")
    lines = [json.dumps({"question": "?", "contexts": entry}) for entry in contexts]
    for name in preflight.DATASET_FILES:
        (folder / name).write_text("\n\n".join(lines) + "\n")
    dataset = {"path": publish(work.workspace, folder, "datasets", {}).path}
    parts = {"stages": ["eval"], "dataset": dataset, "dataPrep": {"topK": 3}, "evaluation": {"maxItems": most}} | MODEL
    if collection:
        assert failure_of(whole(**parts)).reason == "NoCollection"
    else:
        assert preflight.run(whole(**parts)).outcome == "Done"


def test_a_row_that_is_no_json_is_named(whole: Callable[..., Work]) -> None:
    work = whole()
    folder = work.workspace.staging_folder("run-0", "dataset")
    for name in preflight.DATASET_FILES:
        (folder / name).write_text('{"contexts": [{}, {}, {}]}\nno row\n')
    dataset = {"path": publish(work.workspace, folder, "datasets", {}).path}
    failure = failure_of(whole(stages=["eval"], dataset=dataset, **MODEL))
    assert failure.reason == "BadRow" and "val_sft.jsonl line 2: " in failure.message


def test_the_base_that_an_adapter_was_trained_on_is_looked_at(whole: Callable[..., Work]) -> None:
    work = whole()

    def evaluating(provenance: dict[str, Any]) -> Work:
        folder = work.workspace.staging_folder("run-0", "adapter")
        (folder / "adapter_model.safetensors").write_text(json.dumps(provenance))
        path = publish(work.workspace, folder, "adapters", provenance).path
        return whole(kind="EvalRun", stages=["eval"], evaluatedModel={"name": "m", "adapterPath": path}, baseModel=None)

    told = preflight.run(evaluating({"base": {"path": "base/tiny", "digest": "d", "family": "llama"}}))
    assert {measure.name: measure.value for measure in told.measures}["modelFamily"] == "llama"
    gone = failure_of(evaluating({"base": {"path": "base/gone", "digest": "d"}}))
    assert gone.reason == "NoBaseModel" and "there is no folder base/gone in the workspace; base has" in gone.message
    hub = {"huggingFaceId": "org/name", "revision": "a" * 40, "digest": "d"}
    assert "baseModel: org/name was not looked at" in preflight.run(evaluating({"base": hub})).message
    for provenance in ({}, {"base": "llama"}, {"base": {"path": "base/tiny", "huggingFaceId": "org/name"}}):
        assert failure_of(evaluating(provenance)).reason == "NoBaseRecorded"


def test_too_little_room_is_found_early(whole: Callable[..., Work], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "SPARE_BYTES", 2**62)
    failure = failure_of(whole())
    assert failure.reason == "DiskFull" and "enlarge the claim" in failure.message


def test_other_files_in_the_corpus_are_mentioned(whole: Callable[..., Work]) -> None:
    work = whole()
    (work.workspace.root / "corpus" / "SOURCES.md").write_text("sources")
    assert "1 files of corpus whose names do not end in .pdf are left out" in preflight.run(work).message


def test_the_families_are_those_that_can_be_trained() -> None:
    # Read, not imported: that module loads torch and more.
    source = (Path(preflight.__file__).parent / "lora.py").read_text()
    targets = next(
        node.value
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "TARGET_MODULES"
    )
    assert isinstance(targets, ast.Dict)
    assert sorted(ast.literal_eval(key) for key in targets.keys if key) == sorted(TRAINABLE_FAMILIES)
