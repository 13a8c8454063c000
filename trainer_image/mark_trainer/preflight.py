"""The stage preflight: every input of all the run's stages, before any GPU is asked for. It takes seconds.

It reports all that is wrong at once. It must not import torch, nor change anything but its run's own folder.
"""

import json
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from mark_crds import names
from mark_crds.job_input import digest_of
from mark_crds.job_output import Measure, Result

from mark_trainer.collection import lock_name, no_collection, open_collection
from mark_trainer.documents import Unreadable, count_pages, path_text, seen_fault
from mark_trainer.failures import BadData, Failure, MachineTrouble, UserMistake
from mark_trainer.ingest import corpus_files, unusable_files
from mark_trainer.judgements import judgements_digest, read_judgements
from mark_trainer.locks import is_stale, see_holder
from mark_trainer.model_files import base_of, see_model
from mark_trainer.outcome import see_completed
from mark_trainer.publish import verify_folder
from mark_trainer.workspace import Work, write_file

DATASET_FILES = ("train_sft.jsonl", "val_sft.jsonl")
SECONDS_FOR_THE_CORPUS = 60.0
SPARE_BYTES = 64 * 1024**2
_TRAINING_STAGES = frozenset(["lora", "reward", "ppo"])
_MODEL_STAGES = _TRAINING_STAGES | {"eval"}


@dataclass
class Findings:
    """What the checks learned on the way."""

    facts: dict[str, int | str] = field(default_factory=dict)
    """Numbers and digests for the Result."""
    notes: list[str] = field(default_factory=list)
    """What a person should know though nothing is wrong."""


def run(work: Work) -> Result:
    """Adopted when the work is done already; else Done when nothing is wrong."""
    completed = see_completed(work)
    if completed is not None:
        adopted, artifacts = completed
        return Result(
            stage=work.stage,
            outcome="Adopted",
            reason="AlreadyDone",
            message=f"run {adopted.run_uid} finished this work on {adopted.finished}; "
            "to train again, change spec.trainingRevision",
            artifacts=artifacts[:8],
            adopted=adopted,
        )
    found = Findings()
    problems: list[Failure] = []
    for check in _CHECKS:
        try:
            check(work, found)
        except Failure as failure:
            problems.append(failure)
    if problems:
        raise _as_one(problems)
    measures = tuple(Measure(name=name, value=str(value)) for name, value in found.facts.items())
    message = "; ".join([f"all inputs of {', '.join(work.job_input.stages)} are there", *found.notes])
    return Result(stage=work.stage, outcome="Done", reason="AllThere", message=message[:1000], measures=measures)


def check_writable(work: Work, found: Findings) -> None:
    """The run may write where it will have to."""
    try:
        write_file(work.run_folder / "preflight", "")
    except PermissionError as error:
        raise UserMistake(
            "WorkspaceReadOnly",
            f"workspace.claimName: {names.RUNS_FOLDER}/ cannot be written ({error.strerror}); "
            "give the volume to the trainer's group, or use a claim with write access",
        ) from error


def check_corpus(work: Work, found: Findings) -> None:
    """The corpus has PDF files and every one can be opened, as far as a minute reaches."""
    if "ingest" not in work.job_input.stages:
        return
    files = corpus_files(work)
    root = work.workspace.root
    faults = {file: seen_fault(file, root) for file in files}
    faulty = [Unreadable(path_text(file, root), fault) for file, fault in faults.items() if fault is not None]
    openable = [file for file, fault in faults.items() if fault is None]
    deadline = time.monotonic() + SECONDS_FOR_THE_CORPUS
    counts = []
    for count in count_pages(openable, root):
        counts.append(count)
        if time.monotonic() > deadline:
            found.notes.append(
                f"only {len(counts)} of {len(openable)} PDF files were looked at; ingest looks at the others"
            )
            break
    faulty += [count for count in counts if isinstance(count, Unreadable)]
    # Files that the minute did not reach may be good.
    may_be_good = len(faulty) < len(files)
    if faulty and (work.job_input.ingest.on_bad_file == "Fail" or not may_be_good):
        raise unusable_files(faulty)
    if faulty:
        found.facts["leftOutFiles"] = len(faulty)
        found.notes.append(
            f"ingest will leave out {len(faulty)} of {len(files)} files: {unusable_files(faulty).message}"
        )
    found.facts["pdfFiles"] = len(files)
    found.facts["pages"] = sum(count for count in counts if isinstance(count, int))
    folder = work.workspace.path(work.job_input.ingest.path)
    others = sum(path.is_file() and not path.name.startswith(".") for path in folder.rglob("*")) - len(files)
    if others:
        found.notes.append(
            f"{others} files of {work.job_input.ingest.path} whose names do not end in .pdf are left out"
        )


def check_server(work: Work, found: Findings) -> None:
    """The Chroma server answers."""
    server = work.job_input.data_prep.chroma.server
    if server is None or not _uses_collection(work):
        return
    try:
        socket.create_connection((server.host, server.port), timeout=5).close()
    except OSError as error:
        raise MachineTrouble(
            "ChromaUnreachable",
            f"dataPrep.chroma.server: {server.host}:{server.port} does not answer ({error}); "
            "start it, or correct host and port",
        ) from error


def check_collection(work: Work, found: Findings) -> None:
    """The collection is there and whole, unless the run makes it; and nobody else is at it."""
    if not _uses_collection(work):
        return
    path = work.workspace.locks_folder() / f"{lock_name(work).replace('/', '-')}.lock"
    holder = see_holder(path)
    if holder is not None and holder.run_uid != work.run_uid and not is_stale(work.workspace, path):
        found.notes.append(f"the collection is in use by {holder.sentence}; this run waits for it")
        return
    if "ingest" in work.job_input.stages:
        return
    chroma = work.job_input.data_prep.chroma
    if chroma.server is None and not (work.workspace.path(chroma.path) / "chroma.sqlite3").is_file():
        raise UserMistake("NoCollection", no_collection(work, []))
    with open_collection(work) as collection:
        digest = collection.digest
        if digest is None:
            raise BadData(
                "CollectionIncomplete",
                f"dataPrep.collection: {work.job_input.data_prep.collection} was not written to its end by this "
                "trainer; add ingest to spec.stages",
            )
        found.facts["chunks"] = collection.count
    found.facts["collectionDigest"] = digest[:16]


def check_base_model(work: Work, found: Findings) -> None:
    """The base model is a folder that transformers can load without running anybody's code."""
    reference = base_of(work.job_input, work.workspace) if _MODEL_STAGES & set(work.job_input.stages) else None
    if reference is None:
        return
    if reference.path is None:
        found.notes.append(
            f"baseModel: {reference.hugging_face_id} was not looked at, since it is downloaded by the stage"
        )
        return
    folder = work.workspace.path(reference.path)
    if not folder.is_dir():
        raise UserMistake(
            "NoBaseModel",
            f"baseModel.path: there is no folder {reference.path} in the workspace"
            f"{work.workspace.neighbours(reference.path)}; put the model there or correct the path",
        )
    config = see_model(folder, reference.path)
    longest = config.get("max_position_embeddings")
    if (
        _TRAINING_STAGES & set(work.job_input.stages)
        and isinstance(longest, int)
        and work.job_input.lora.max_length > longest
    ):
        raise UserMistake(
            "TooLong",
            f"lora.maxLength: is {work.job_input.lora.max_length}, and the base model reads {longest} tokens at most "
            f"(max_position_embeddings); set it to {longest} or less",
        )
    found.facts["modelFamily"] = config["model_type"]
    found.facts["modelConfigDigest"] = digest_of(json.dumps(config, sort_keys=True))[:16]


def check_dataset(work: Work, found: Findings) -> None:
    """The named dataset has its files, unchanged."""
    reference = work.job_input.dataset
    if reference is None:
        return
    folder = work.workspace.path(reference.path)
    if not folder.is_dir():
        raise UserMistake(
            "NoDataset",
            f"dataset.path: there is no folder {reference.path} in the workspace"
            f"{work.workspace.neighbours(reference.path)}; run dataPrep, or correct the path",
        )
    missing = [name for name in DATASET_FILES if not (folder / name).is_file()]
    if missing:
        raise BadData(
            "NoDatasetFile", f"dataset.path: {reference.path} has no {' and no '.join(missing)}; run dataPrep"
        )
    found.facts["datasetDigest"] = verify_folder(folder, reference.path)[:16]


def check_preferences(work: Work, found: Findings) -> None:
    """Every judgement of the named file can be read."""
    preferences = work.job_input.rlhf.preferences
    if "reward" not in work.job_input.stages:
        return
    if preferences is None:
        found.notes.append("reward will learn from pairs made by rules, not from what people judged")
        return
    found.facts["judgements"] = len(read_judgements(work.workspace, preferences.path))
    found.facts["judgementsDigest"] = judgements_digest(work.workspace, preferences.path)[:16]


def check_adapter(work: Work, found: Findings) -> None:
    """The adapter that an EvalRun measures is the one that its manifest and the spec speak of."""
    model = work.job_input.evaluated_model
    if model is None or model.adapter_path is None:
        return
    folder = work.workspace.path(model.adapter_path)
    if not folder.is_dir():
        raise UserMistake(
            "NoAdapter",
            f"model: there is no adapter folder {model.adapter_path} in the workspace"
            f"{work.workspace.neighbours(model.adapter_path)}; name another version or path",
        )
    digest = verify_folder(folder, model.adapter_path)
    if model.adapter_digest not in (None, digest):
        raise BadData(
            "DigestDiffers",
            f"model: {model.adapter_path} has the digest {digest[:16]}..., and {model.name} was registered with "
            f"{str(model.adapter_digest)[:16]}...; copy the adapter back, or name another version",
        )
    found.facts["adapterDigest"] = digest[:16]


def check_disk(work: Work, found: Findings) -> None:
    """The volume has room for what the run will write, by a rough estimate."""
    free = shutil.disk_usage(work.workspace.root).free
    found.facts["freeGibibytes"] = f"{free / 1024**3:.1f}"
    needed = SPARE_BYTES
    if "ingest" in work.job_input.stages:
        # Texts and vectors are a small part of most PDFs; three times as much is on the safe side.
        needed += 3 * _size_of(work.workspace.path(work.job_input.ingest.path))
    reference = work.job_input.base_model
    if _TRAINING_STAGES & set(work.job_input.stages) and reference is not None and reference.path is not None:
        # Adapter, optimizer and a few checkpoints are a fraction of the frozen weights.
        needed += _size_of(work.workspace.path(reference.path)) * 3 // 10
    if free < needed:
        raise UserMistake(
            "DiskFull",
            f"workspace.claimName: {free // 1024**2} MiB are free and about {needed // 1024**2} MiB will be needed: "
            f"enlarge the claim or remove folders that nobody needs below {names.RUNS_FOLDER}/",
        )


_CHECKS: tuple[Callable[[Work, Findings], None], ...] = (
    check_writable,
    check_corpus,
    check_server,
    check_collection,
    check_base_model,
    check_dataset,
    check_preferences,
    check_adapter,
    check_disk,
)


def _as_one(problems: list[Failure]) -> Failure:
    """One failure that tells of all: never retried if one of them cannot mend itself."""
    kinds = (UserMistake, BadData, MachineTrouble)
    kind = next(kind for kind in kinds if any(isinstance(problem, kind) for problem in problems))
    first = next(problem for problem in problems if isinstance(problem, kind))
    ordered = [first, *(problem for problem in problems if problem is not first)]
    if len(ordered) == 1:
        return first
    sentences = [f"({number}) {problem.message}" for number, problem in enumerate(ordered, 1)]
    return kind(first.reason, f"{len(ordered)} problems: " + " ".join(sentences))


def _uses_collection(work: Work) -> bool:
    stages = set(work.job_input.stages)
    evaluates_alone = "eval" in stages and "dataPrep" not in stages and work.job_input.evaluation.rag
    # Rows of a dataset record their passages, so an evaluation needs the collection only without them.
    return bool(stages & {"ingest", "dataPrep"}) or (evaluates_alone and not _rows_have_passages(work))


def _rows_have_passages(work: Work) -> bool:
    """Whether every row that will be measured records as many passages as it is to be shown."""
    reference = work.job_input.dataset
    most, top_k = work.job_input.evaluation.max_items, work.job_input.data_prep.top_k
    path = work.workspace.path(reference.path) / DATASET_FILES[1] if reference else None
    if path is None or not path.is_file():
        return True
    with path.open(encoding="utf-8") as file:
        rows = islice(((number, line) for number, line in enumerate(file, 1) if line.strip()), most)
        return all(_recorded_passages(line, f"{path.name} line {number}") >= top_k for number, line in rows)


def _recorded_passages(line: str, place: str) -> int:
    try:
        return len(json.loads(line).get("contexts") or ())
    except (ValueError, TypeError, AttributeError) as error:
        raise BadData("BadRow", f"{place}: is no row of a dataset ({error}); correct the row") from error


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
