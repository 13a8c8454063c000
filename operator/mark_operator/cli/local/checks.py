"""What a stage needs on this machine before it can start, in words. The trainer's preflight looks closer afterwards.

It must not start or write anything.
"""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

from mark_crds import names
from mark_crds.job_input import JobInput
from mark_crds.names import STAGE_NAMES

from mark_operator.cli.session import Json

MODEL_STAGES = frozenset({"lora", "reward", "ppo", "eval"})
INSTALL_TRAINER = "install it beside this command, in a checkout of the project: pip install '.[trainer]'"
# The reason of a preflight that failed because an earlier stage has not run, and that stage.
EARLIER_STAGE = {"NoCollection": "ingest", "CollectionIncomplete": "ingest", "NoDataset": "dataPrep"}


def spelled(stage: str) -> str:
    """The stage as the command line spells it, such as `data_prep`."""
    return "eval" if stage == "eval" else STAGE_NAMES[stage][0]


def run_first(what: str, stage: str) -> str:
    """What is missing, and the stage that makes it."""
    return f"{what}: run the {spelled(stage)} stage first"


def local_checks(job: JobInput, stages: tuple[str, ...], workspace: Path, results: Path) -> list[Json]:
    """Each check with its outcome, as a plan in the cluster has them. `stages` are those that would run now."""
    return [
        {"name": name, "outcome": "Failed" if problem else "Passed", "message": problem}
        for name, problem in _looks(job, stages, workspace, results)
    ]


def _looks(job: JobInput, stages: tuple[str, ...], workspace: Path, results: Path) -> Iterator[tuple[str, str]]:
    """Each check's name and what is wrong; empty when nothing is."""
    yield "trainer", _trainer()
    yield "workspace", "" if os.access(workspace, os.W_OK) else f"{workspace} cannot be written by this user"
    yield "machine", _one_machine(job, stages)
    if "ingest" in stages:
        yield "corpus", _folder(workspace, job.ingest.path, "ingest.path", "put the PDF files there")
    if "dataPrep" in stages and "ingest" not in stages:
        yield "collection", _collection(job, workspace)
    if MODEL_STAGES & set(stages):
        if job.base_model is not None and job.base_model.path is not None:
            yield "base model", _folder(workspace, job.base_model.path, "baseModel.path", "put the base model there")
        if set(stages) != {"reward"} or job.rlhf.preferences is None:
            yield "dataset", _dataset(job, stages, workspace, results)
    if "reward" in stages and job.rlhf.preferences is not None:
        yield "preferences", _file(workspace, job.rlhf.preferences.path, "rlhf.preferences.path")
    yield from _earlier(job, stages, results)


def _earlier(job: JobInput, stages: tuple[str, ...], results: Path) -> Iterator[tuple[str, str]]:
    """What the stages to run take from training stages of this run that are not among them."""
    for name, maker, users in (
        ("adapter", "lora", {"reward", "ppo", "eval"}),
        ("reward model", "reward", {"ppo"}),
        ("ppo adapter", "ppo", {"eval"}),
    ):
        if users & set(stages) and maker in job.stages and maker not in stages:
            there = (results / f"{maker}.json").exists()
            yield name, "" if there else run_first(f"no {name} of {job.name}", maker)


def _trainer() -> str:
    missing = [package for package in ("mark_trainer", "torch") if importlib.util.find_spec(package) is None]
    return f"the trainer is not installed here ({' and '.join(missing)} missing); {INSTALL_TRAINER}" if missing else ""


def _one_machine(job: JobInput, stages: tuple[str, ...]) -> str:
    if job.nodes == 1 or "lora" not in stages:
        return ""
    return f"resources.nodes: is {job.nodes}, and --local is one machine; set it to 1, or apply the run to a cluster"


def _folder(workspace: Path, path: str, field: str, cure: str) -> str:
    if (workspace / path).is_dir():
        return ""
    return f"{field}: there is no folder {path} in {workspace}; {cure}, or correct the path"


def _file(workspace: Path, path: str, field: str) -> str:
    if (workspace / path).is_file():
        return ""
    return f"{field}: there is no file {path} in {workspace}; put it there, or correct the path"


def _collection(job: JobInput, workspace: Path) -> str:
    """A server's collection, and what an embedded database holds, are left to the trainer's preflight."""
    chroma = job.data_prep.chroma
    if chroma.server is not None or (workspace / chroma.path / "chroma.sqlite3").is_file():
        return ""
    return run_first(f"no collection {job.data_prep.collection}", "ingest")


def _dataset(job: JobInput, stages: tuple[str, ...], workspace: Path, results: Path) -> str:
    if job.dataset is not None:
        return _folder(workspace, job.dataset.path, "dataset.path", "put the dataset there")
    if "dataPrep" in stages or (results / "dataPrep.json").exists():
        return ""
    return run_first(f"no dataset of {job.name}", "dataPrep")


def results_folder(workspace: Path, uid: str) -> Path:
    """Where the trainer records the stages that this run has done."""
    return workspace / names.RUNS_FOLDER / uid / "results"
