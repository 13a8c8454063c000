"""The dataset: the same bytes every time, exact numbers, and nothing held out that training sees."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mark_crds.job_output import Result
from mark_trainer import data_prep, ingest
from mark_trainer.chunks import page_of
from mark_trainer.collection import open_collection
from mark_trainer.data_prep import hold_out
from mark_trainer.documents import Document
from mark_trainer.failures import BadData, UserMistake
from mark_trainer.near_duplicates import SAME_CLUSTER_OVERLAP
from mark_trainer.publish import verify_folder
from mark_trainer.workspace import Work

pytestmark = pytest.mark.slow

MakeWork = Callable[..., Work]
WritePdf = Callable[[Path, str, str], Path]
CopyOf = Callable[..., Path]
Rows = list[dict[str, Any]]


def make(work: Work) -> tuple[Result, Rows, Rows, dict[str, Any]]:
    result = data_prep.run(work)
    folder = work.workspace.path(result.artifacts[0].path)
    train, validation = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in ("train_sft.jsonl", "val_sft.jsonl")
    )
    return result, train, validation, json.loads((folder / "dataset_card.json").read_text())


@pytest.fixture(scope="module")
def workspace(ingested: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import shutil

    return Path(shutil.copytree(ingested, tmp_path_factory.mktemp("prepared") / "root"))


@pytest.fixture
def work(workspace: Path, make_work: MakeWork) -> Work:
    return make_work("dataPrep", root=workspace)


def test_the_same_inputs_give_the_same_bytes(work: Work, ingested: Path, copy_of: CopyOf, make_work: MakeWork) -> None:
    other = make_work("dataPrep", run_uid="run-2", root=copy_of(ingested))
    first, second = data_prep.run(work), data_prep.run(other)
    assert first == second
    for name in ("train_sft.jsonl", "val_sft.jsonl", "dataset_card.json", "manifest.json"):
        paths = [made.workspace.path(first.artifacts[0].path) / name for made in (work, other)]
        assert paths[0].read_bytes() == paths[1].read_bytes()
    assert verify_folder(paths[0].parent, "dataset") == first.artifacts[0].digest == paths[0].parent.name


def test_another_seed_gives_another_dataset(work: Work, workspace: Path, make_work: MakeWork) -> None:
    other = make_work("dataPrep", root=workspace, dataPrep={"maxSamples": 40, "seed": 8})
    assert data_prep.run(work).artifacts != data_prep.run(other).artifacts


@pytest.mark.parametrize(("most", "top_k"), [(10, 1), (30, 5)])
def test_max_samples_and_top_k_are_exact(workspace: Path, make_work: MakeWork, most: int, top_k: int) -> None:
    settings = {"maxSamples": most, "topK": top_k, "validationFraction": "0.3"}
    _, train, validation, _ = make(make_work("dataPrep", root=workspace, dataPrep=settings))
    assert len(train) == round(0.7 * most) and len(validation) == round(0.3 * most)
    for row in train + validation:
        assert len(row["contexts"]) == top_k == len({context["chunkId"] for context in row["contexts"]})


def test_more_samples_than_there_are_gives_all_that_there_are(workspace: Path, make_work: MakeWork) -> None:
    _, train, validation, card = make(make_work("dataPrep", root=workspace, dataPrep={"maxSamples": 100000}))
    assert 50 < len(train) + len(validation) < 1000
    assert card["rows"] == {"train": len(train), "val": len(validation)}


def test_rows_point_at_the_text_that_they_were_made_from(work: Work) -> None:
    _, train, validation, _ = make(work)
    with open_collection(work) as collection:
        content = collection.read()
    passages = {passage.id: passage for passage in content.passages}
    for row in train + validation:
        document: Document = content.document_of[row["document"]["digest"]]
        start, end = row["span"]
        chunk = passages[row["chunkId"]]
        assert document.text[start:end] == row["answer"] in chunk.text
        assert chunk.start <= start and end <= chunk.end
        assert row["document"]["path"] == document.path and document.title in row["question"]
        assert row["oraclePassage"]["chunkId"] == row["chunkId"] and row["topic"]
        for context in row["contexts"]:
            assert context["text"] == passages[context["chunkId"]].text
            holder = content.document_of[context["document"]]
            assert holder.text[slice(*context["span"])] == context["text"] and holder.path == context["path"]
            last = context["span"][1] - 1
            assert context["page"] + len(context["pageBreaks"]) == page_of(holder.page_starts, last)
            assert not context["oracle"] or row["answer"] in context["text"]


def test_training_rows_see_their_own_split_and_always_the_answer(work: Work) -> None:
    _, train, validation, card = make(work)
    split_of = {document["digest"]: document["split"] for document in card["documents"]}
    for row in train:
        assert {split_of[context["document"]] for context in row["contexts"]} == {"train"}
        assert any(context["oracle"] for context in row["contexts"])
    missed = [row for row in validation if not row["retrieved"]]
    assert not any(context["oracle"] for row in missed for context in row["contexts"])


def test_nothing_is_shared_across_the_split(work: Work) -> None:
    result, train, validation, card = make(work)
    for key in ("digest", "cluster"):
        sides = [{row["document"][key] for row in rows} for rows in (train, validation)]
        assert not sides[0] & sides[1] and all(sides)
    leakage = card["leakage"]
    assert [leakage[f"{thing}InBothSplits"] for thing in ("clusters", "documents", "questions")] == [0, 0, 0]
    assert float(leakage["largestDocumentOverlap"]) < SAME_CLUSTER_OVERLAP
    by_path = {document["path"]: document["cluster"] for document in card["documents"]}
    assert by_path["corpus/AFL-3.0.pdf"] == by_path["corpus/OSL-3.0.pdf"]
    assert len(set(by_path.values())) == 5 and "share no document" in result.message


def test_questions_are_asked_once(work: Work) -> None:
    _, train, validation, _ = make(work)
    questions = [row["question"] for row in train + validation]
    assert len(set(questions)) == len(questions)
    assert len({row["id"] for row in train + validation}) == len(questions)


def test_the_first_validation_rows_spread_over_the_clusters(workspace: Path, make_work: MakeWork) -> None:
    settings = {"maxSamples": 60, "validationFraction": "0.5"}
    _, _, validation, card = make(make_work("dataPrep", root=workspace, dataPrep=settings))
    clusters = card["clusters"]["val"]
    assert len({row["document"]["cluster"] for row in validation[:clusters]}) == clusters > 1


def test_rows_are_shared_evenly_between_documents(workspace: Path, make_work: MakeWork) -> None:
    _, train, _, card = make(make_work("dataPrep", root=workspace, dataPrep={"maxSamples": 10}))
    counts = Counter(row["document"]["digest"] for row in train)
    assert len(counts) == sum(document["split"] == "train" for document in card["documents"])
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize(("fraction", "held_out"), [("0.2", 2), ("0.01", 1), ("0.99", 9)])
def test_the_fraction_is_of_clusters_and_leaves_some_on_both_sides(fraction: str, held_out: int) -> None:
    clusters = {f"document{number}": f"cluster{number // 2}" for number in range(20)}
    splits = hold_out(clusters, fraction, seed=7)
    found = {clusters[document] for document, split in splits.items() if split == "val"}
    assert len(found) == held_out
    assert all(splits[f"document{number}"] == splits[f"document{number + 1}"] for number in range(0, 20, 2))


def test_one_cluster_only_says_what_to_add(make_work: MakeWork, write_pdf: WritePdf) -> None:
    work = make_work("dataPrep")
    text = "\n".join(
        f"The tenant shall pay the rent of month {number} to the landlord in advance." for number in range(9)
    )
    for name in ("a", "b"):
        write_pdf(work.workspace.root / "corpus" / f"{name}.pdf", f"Lease {name}", text)
    ingest.run(work)
    with pytest.raises(BadData, match=r"2 documents are near-duplicates .* add documents with other texts") as caught:
        data_prep.run(work)
    assert caught.value.reason == "TooFewClusters"
    assert not (work.workspace.root / "datasets").exists()


def test_a_missing_collection_names_those_that_there_are(workspace: Path, make_work: MakeWork) -> None:
    work = make_work("dataPrep", root=workspace, dataPrep={"collection": "contracts"})
    with pytest.raises(UserMistake, match=r"no collection contracts in chroma: .*there are: pdf_docs"):
        data_prep.run(work)


def test_documents_of_one_title_are_told_apart(make_work: MakeWork, write_pdf: WritePdf) -> None:
    work = make_work("dataPrep")
    for name, thing in (("first", "rent for the house"), ("second", "price of the machine")):
        text = f"The debtor of this contract must pay the {thing} to the creditor on the last day of the month."
        write_pdf(work.workspace.root / "corpus" / f"{name}.pdf", "Contract", text)
    ingest.run(work)
    with open_collection(work) as collection:
        titles = [document.title for document in data_prep.with_distinct_titles(collection.read()).documents]
    assert titles == ["Contract (first)", "Contract (second)"]
