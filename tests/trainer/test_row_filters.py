"""Which questions become rows, which do not and why, and the rows whose document does not answer."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mark_crds.job_input import JobInput
from mark_crds.stages import DataPrep
from mark_trainer import data_prep
from mark_trainer.candidates import Candidate, candidates, names_its_document, without_repeats
from mark_trainer.chunks import cut, sentences
from mark_trainer.collection import Content, Passage, open_collection
from mark_trainer.dataset import read_rows
from mark_trainer.documents import Document
from mark_trainer.embedding import Embedder
from mark_trainer.prompts import REFUSAL
from mark_trainer.round_trip import RoundTrip
from mark_trainer.unanswerable import SPEAKS_OF_IT_SHARE, moved_questions
from mark_trainer.workspace import Work

pytestmark = pytest.mark.slow

MakeWork = Callable[..., Work]
Rows = list[dict[str, Any]]
CORPUS = Path(__file__).resolve().parents[2] / "manifests" / "corpus"


@pytest.fixture(scope="module")
def workspace(ingested: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(ingested, tmp_path_factory.mktemp("filtered") / "root"))


@pytest.fixture
def make(workspace: Path, make_work: MakeWork) -> Callable[..., tuple[Rows, Rows, Rows, dict[str, Any]]]:
    """Makes a dataset: training rows, validation rows, what was left out, the card."""

    def run(**settings: Any) -> tuple[Rows, Rows, Rows, dict[str, Any]]:
        work = make_work("dataPrep", root=workspace, dataPrep=settings)
        folder = work.workspace.path(data_prep.run(work).artifacts[0].path)
        names = (data_prep.TRAIN_FILE, data_prep.VALIDATION_FILE, data_prep.LEFT_OUT_FILE)
        train, validation, left_out = (
            [json.loads(line) for line in (folder / name).read_text().splitlines()] for name in names
        )
        return train, validation, left_out, json.loads((folder / "dataset_card.json").read_text())

    return run


def read(workspace: Path, make_work: MakeWork) -> Content:
    with open_collection(make_work("dataPrep", root=workspace)) as collection:
        return data_prep.with_distinct_titles(collection.read())


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["Train", "All", "Off"])
def test_the_round_trip_keeps_questions_that_find_their_own_passage(make: Callable[..., Any], mode: str) -> None:
    train, validation, left_out, card = make(maxSamples=2000, topK=1, roundTripFilter=mode)
    missed = [entry for entry in left_out if entry["reason"] == "NotRetrieved"]
    for row in train + validation:
        rank = row["filters"]["retrievalRank"]
        assert row["retrieved"] == (rank is not None and rank <= 1)
    assert all(entry["retrievalRank"] is None or entry["retrievalRank"] > 1 for entry in missed)
    assert all(row["retrieved"] for row in train) == (mode != "Off")
    assert all(row["retrieved"] for row in validation) == (mode == "All")
    assert {entry["split"] for entry in missed} == {"Train": {"train"}, "All": {"train", "val"}, "Off": set()}[mode]
    # With room for all, every question that was made is a row or left out with its reason.
    assert (
        card["candidates"]
        == len(train) + len(validation) + len(left_out)
        == sum(card["rows"].values()) + sum(card["leftOut"].values())
    )


def test_hard_negatives_are_the_next_nearest_without_the_answer(
    make: Callable[..., Any], workspace: Path, make_work: MakeWork
) -> None:
    train, validation, _, card = make(maxSamples=20, topK=2, hardNegatives=3)
    content = read(workspace, make_work)
    training = {document["digest"] for document in card["documents"] if document["split"] == "train"}
    vectors = Embedder().embed([row["question"] for row in train])
    for row, nearest in zip(train, content.search(vectors, 50, training), strict=True):
        assert len(row["contexts"]) == 5 and any(context["oracle"] for context in row["contexts"][:2])
        negatives = row["contexts"][2:]
        assert not any(context["oracle"] or row["answer"] in context["text"] for context in negatives)
        answers = {passage.id for passage in nearest if row["answer"] in passage.text}
        expected = [passage.id for passage in nearest[2:] if passage.id not in answers]
        assert [context["chunkId"] for context in negatives] == expected[:3]
    assert all(len(row["contexts"]) == 2 for row in validation)


@pytest.mark.slow
def test_unanswerable_rows_come_at_the_set_rate_and_nothing_answers_them(
    make: Callable[..., Any], workspace: Path, make_work: MakeWork
) -> None:
    train, validation, _, card = make(maxSamples=40, unanswerableFraction="0.25", validationFraction="0.5")
    content = read(workspace, make_work)
    split_of = {document["digest"]: document["split"] for document in card["documents"]}
    cluster_of = {document["digest"]: document["cluster"] for document in card["documents"]}
    assert len(train) + len(validation) == 40
    assert card["unanswerableRows"] == {"train": 5, "val": 5}
    for row in [row for row in train + validation if not row["answerable"]]:
        document = content.document_of[row["document"]["digest"]]
        source = row["madeFrom"]
        assert row["answer"] == REFUSAL and row["page"] is row["span"] is row["oraclePassage"] is None
        assert names_its_document(row["question"], document.title)
        assert split_of[document.digest] == split_of[source["document"]] == row["split"]
        assert cluster_of[document.digest] != cluster_of[source["document"]]
        assert content.document_of[source["document"]].title not in row["question"]
        asked = words(row["question"].replace(document.title, ""))
        for start, end in sentences(document.text):
            assert len(asked & words(document.text[start:end])) < SPEAKS_OF_IT_SHARE * len(asked)
        assert len(row["contexts"]) == 3 and not any(context["oracle"] for context in row["contexts"])
        if row["split"] == "train":
            assert {split_of[context["document"]] for context in row["contexts"]} == {"train"}
    folder = next(
        path
        for path in (workspace / "datasets").iterdir()
        if '"unanswerableFraction": "0.25"' in (path / "dataset_card.json").read_text()
    )
    assert sum(not row.answerable for row in read_rows(folder, data_prep.TRAIN_FILE)) == 5


def test_without_a_rate_there_are_no_unanswerable_rows(make: Callable[..., Any]) -> None:
    train, validation, _, card = make(maxSamples=20)
    assert all(row["answerable"] for row in train + validation)
    assert card["unanswerableRows"] == {"train": 0, "val": 0}


def test_every_row_names_its_document_and_what_it_was_filtered_by(make: Callable[..., Any]) -> None:
    train, validation, left_out, card = make(maxSamples=2000)
    for row in train + validation:
        assert names_its_document(row["question"], row["document"]["title"])
        assert row["filters"].keys() == {"standsAlone", "answerIsSpan", "repeats", "retrievalRank"}
        assert re.fullmatch(r"[0-9a-f]{64}", row["document"]["digest"]) and row["page"] >= 1 and row["generator"]
        assert row["sentence"][0] <= row["span"][0] < row["span"][1] <= row["sentence"][1]
    assert float(card["leakage"]["largestQuestionOverlap"]) < float(card["leakage"]["allowedQuestionOverlap"])
    reasons = {entry["reason"] for entry in left_out}
    assert reasons == set(card["leftOut"]) and reasons & {"RepeatsExactly", "RepeatsNearly"}
    ids = {row["id"] for row in train + validation} | {entry["id"] for entry in left_out}
    assert all(entry["of"] in ids for entry in left_out if entry["reason"].startswith("Repeats"))


@pytest.mark.parametrize(
    ("question", "stands"),
    [
        ('According to "Model Lease", what applies if rent is due under Section 4?', True),
        ("What applies if rent is due under Section 4?", False),
        ('According to "Model Lease", what does this License mean?', False),
        ('According to "Model Lease", what applies when such notice was given?', False),
        ('According to "Model Lease", what applies in the cases above?', False),
    ],
)
def test_a_section_needs_its_document_beside_it(question: str, stands: bool) -> None:
    assert names_its_document(question, "Model Lease") is stands


def content_of(**texts: str) -> Content:
    """A collection of documents of one page each, without vectors."""
    documents = [
        Document(name * 64, f"corpus/{name}.pdf", f"Contract {name}", text, (0,), ()) for name, text in texts.items()
    ]
    passages = [
        Passage(chunk.id, chunk.text, document.digest, chunk.start, chunk.end, chunk.first_page)
        for document in documents
        for chunk in cut(document, 800, 100)
    ]
    return Content(tuple(documents), tuple(passages), None, "d" * 64)  # type: ignore[arg-type]


def test_what_says_the_answer_is_no_hard_negative_though_it_is_another_document() -> None:
    rule = '"Tenant" means any natural or legal person who rents the premises for a year or more than that.'
    texts = {
        "a": rule,
        "b": f"In this lease {rule.upper()}",
        "c": rule.replace("natural", "single"),
        "d": "Goods are carried.",
    }
    content = content_of(**texts)
    content = replace(content, vectors=Embedder().embed([passage.text for passage in content.passages]))
    settings = DataPrep.model_validate({"topK": 1, "hardNegatives": 3, "roundTripFilter": "Off"})
    asked = [
        candidate
        for candidate in made_of(content, **dict.fromkeys(texts, "train"))
        if candidate.document.path == "corpus/a.pdf"
    ]
    round_trip = RoundTrip(settings, content, {name * 64 for name in texts}, lambda: None)
    (found,) = round_trip.passing(asked)
    assert [passage.document[0] for passage in found.contexts] == ["a", "c", "d"]


def made_of(content: Content, **splits: Any) -> list[Candidate]:
    return list(candidates(content, {name * 64: split for name, split in splits.items()}))


def test_a_training_question_gives_way_to_its_like_on_the_other_side() -> None:
    own = "The seller of the machine and its parts shall deliver it to the works of the buyer without delay."
    rule = '"Tenant" means any natural or legal person who rents the premises for a year or more than that.'
    near = rule.replace("a year or more than that", "a year or longer than that")
    content = content_of(a=f"{rule}\n{own}", b=rule, c=near)
    made = made_of(content, a="train", b="val", c="train")
    kept, left_out = without_repeats(made)
    assert [(entry["document"][0], entry["reason"], entry["ofSplit"]) for entry in left_out] == [
        ("a", "RepeatsExactly", "val"),
        ("c", "RepeatsNearly", "val"),
    ]
    assert {candidate.document.digest[0] for candidate in kept} == {"a", "b"}
    assert without_repeats(made[::-1])[0] == kept[::-1]


def test_a_question_moves_only_to_a_document_that_says_nothing_of_the_kind() -> None:
    rule = '"Tenant" means any natural or legal person who rents the premises for a year or more than that.'
    content = content_of(
        a=rule,
        b="The person who is the tenant of the house pays the rent.",
        c="The seller delivers the machine to the works of the buyer.",
        d="The carrier brings the goods to the harbour.",
    )
    made = made_of(content, a="train", b="train", c="train", d="train")
    clusters = {"a" * 64: "one", "b" * 64: "two", "c" * 64: "three", "d" * 64: "one"}
    moved = list(moved_questions(made, content.documents, clusters, 7))
    # b speaks of tenants, d is of the cluster of a.
    assert [(entry.text, entry.document.digest[0]) for entry in moved] == [
        ('According to "Contract c", what does "Tenant" mean?', "c")
    ]
    assert moved == list(moved_questions(made[::-1], content.documents, clusters, 7))


def words(text: str) -> set[str]:
    frame = (
        "according what does mean applies when where whenever unless once under which condition exception make rule "
        "purpose reason words fill sentence continue section first"
    )
    return set(re.findall(r"[^\W\d_]{4,}", text.casefold())) - {*frame.split()}


@pytest.mark.slow
def test_the_same_bytes_whatever_the_hash_seed_and_the_order_of_the_files(
    tmp_path: Path, job_input: Callable[..., dict[str, Any]]
) -> None:
    """Two processes each, as the operator starts them; one workspace was filled in two steps and backwards."""
    files = ["CC0-1.0.pdf", "CDL-1.0.pdf", "LPPL-1.0.pdf"]
    settings = {"maxSamples": 30, "unanswerableFraction": "0.2", "hardNegatives": 1}
    (tmp_path / "input.json").write_text(json.dumps(JobInput.model_validate(job_input(dataPrep=settings)).to_dict()))

    def run(root: Path, stage: str, uid: str, hash_seed: str) -> None:
        command = [
            sys.executable,
            "-m",
            "mark_trainer",
            "run",
            "--stage",
            stage,
            "--input",
            str(tmp_path / "input.json"),
        ]
        subprocess.run(
            [*command, "--workspace", str(root), "--run-uid", uid, "--termination-message", str(tmp_path / "message")],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
            timeout=300,
        )

    first, second = tmp_path / "first", tmp_path / "second"
    for root in (first, second):
        (root / "corpus").mkdir(parents=True)
    for name in files:
        shutil.copy(CORPUS / name, first / "corpus")
    for stage in ("ingest", "dataPrep"):
        run(first, stage, "run-1", "1")
    shutil.copy(CORPUS / files[-1], second / "corpus")
    run(second, "ingest", "run-2", "2")
    for name in reversed(files[:-1]):
        shutil.copy(CORPUS / name, second / "corpus")
    for stage in ("ingest", "dataPrep"):
        run(second, stage, "run-3", "3")
    folders = [next((root / "datasets").iterdir()) for root in (first, second)]
    assert folders[0].name == folders[1].name
    contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]
    assert contents[0] == contents[1] and len(contents[0]) == 5
