"""The volume that all stages share: where things lie in it, and how a file gets there whole or not at all.

It must not know what any stage computes.
"""

import json
import os
import threading
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mark_crds import names
from mark_crds.job_input import JobInput
from mark_crds.job_output import Artifact, Measure, Result

from mark_trainer.failures import BadData, Stopped, UserMistake


class Progress(Protocol):
    """Where a stage says how far it is."""

    def report(self, step: int, steps: int, **measures: float) -> None:
        """`step` of `steps` is done; measures such as `loss` are optional."""

    def kept(self, step: int) -> None:
        """A checkpoint of this step has just been kept."""


class NoProgress:
    """For a stage that nobody watches."""

    def report(self, step: int, steps: int, **measures: float) -> None:
        """Say nothing."""

    def kept(self, step: int) -> None:
        """Say nothing."""


class Workspace:
    """The root folder. Every path that a user wrote goes through `path`, which does not leave the root."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise UserMistake("NoWorkspace", f"--workspace: {root} is no folder; mount the claim there")
        self.root = root.resolve()

    def path(self, relative: str | Path) -> Path:
        """The absolute path of something in the workspace, existing or not."""
        path = self.root / relative
        if not path.resolve().is_relative_to(self.root):
            raise UserMistake(
                "PathOutsideWorkspace",
                f"{relative}: leads out of the workspace through '..' or a symbolic link; "
                "copy the files into the workspace and name them there",
            )
        return path

    def relative(self, path: Path) -> str:
        """A path as manifests and results write it."""
        return path.resolve().relative_to(self.root).as_posix()

    def neighbours(self, relative: str) -> str:
        """What lies where a missing path was looked for, as the end of a sentence; empty when there is nothing."""
        folder = self.path(relative).parent
        names_there = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
        place = self.relative(folder)
        where = "the workspace" if place == "." else place
        return f"; {where} has the folders {', '.join(names_there[:8])}" if names_there else ""

    def run_folder(self, run_uid: str) -> Path:
        """The only folder that a run writes in, apart from publishing. Created when absent."""
        return self._folder(names.RUNS_FOLDER, run_uid)

    def staging_folder(self, run_uid: str, purpose: str) -> Path:
        """A new empty folder of the run, on the same file system as everything that is published."""
        return self._folder(names.RUNS_FOLDER, run_uid, "tmp", f"{purpose}-{uuid.uuid4().hex[:8]}")

    def results_folder(self, run_uid: str) -> Path:
        return self._folder(names.RUNS_FOLDER, run_uid, "results")

    def completed_file(self, replay_key: str) -> Path:
        """The file that says that this work is done, whichever run did it."""
        return self._folder(names.COMPLETED_FOLDER) / f"{replay_key}.json"

    def locks_folder(self) -> Path:
        return self._folder(names.LOCKS_FOLDER)

    def _folder(self, *parts: str) -> Path:
        folder = self.path(Path(*parts))
        folder.mkdir(parents=True, exist_ok=True)
        return folder


@dataclass(frozen=True)
class Work:
    """All that a stage gets: what to do, where, for which run, and whom to tell."""

    job_input: JobInput
    workspace: Workspace
    run_uid: str
    attempt: int
    stage: str
    progress: Progress = field(default_factory=NoProgress)
    stop: threading.Event = field(default_factory=threading.Event)
    """Set when the Pod is asked to end. A stage looks at it where it can leave without losing work."""

    @property
    def run_folder(self) -> Path:
        return self.workspace.run_folder(self.run_uid)

    def raise_if_stopped(self) -> None:
        """For stages whose work so far is kept anyway: leave now when asked to."""
        if self.stop.is_set():
            raise Stopped("Stopped", f"{self.stage} was asked to end; the next attempt continues from what is written")

    def result_of(self, stage: str) -> Result | None:
        """What an earlier stage of this run reported, if it is done."""
        path = self.workspace.results_folder(self.run_uid) / f"{stage}.json"
        return Result.model_validate_json(path.read_text()) if path.exists() else None

    def made(self, kind: str, *stages: str) -> Artifact | None:
        """What the first of these stages that is done published of this kind; None where none did."""
        results = [result for stage in stages if (result := self.result_of(stage)) is not None]
        found = [artifact for result in results for artifact in result.artifacts if artifact.kind == kind]
        return found[0] if found else None

    def dataset_folder(self) -> Path:
        """The dataset to train on: the one that the spec names, else the one that this run's dataPrep published."""
        if self.job_input.dataset is not None:
            return self.workspace.path(self.job_input.dataset.path)
        found = self.made("dataset", "dataPrep")
        if found is None:
            raise UserMistake(
                "NoDataset",
                "the run has no dataset: add dataPrep to spec.stages, or name an earlier dataset in spec.dataset.path",
            )
        return self.workspace.path(found.path)

    def done(
        self, reason: str, message: str, artifacts: tuple[Artifact, ...] = (), **measures: float | int | str
    ) -> Result:
        """The result of a stage that did its work."""
        rows = tuple(Measure(name=name, value=_number_text(value)) for name, value in measures.items())
        return Result(
            stage=self.stage, outcome="Done", reason=reason, message=message, artifacts=artifacts, measures=rows
        )


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old one or the whole new one, even after a power cut."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """`write_file` with indented JSON, keys sorted."""
    write_file(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path, name: str) -> Any:
    """The content of a JSON file; `name` is what an error calls it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadData("InvalidJson", f"{name}: is no JSON ({error}); write or copy the file again") from error


def sync_folder(folder: Path) -> None:
    """Make the folder's entries durable: a rename is one only then."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _number_text(value: float | int | str) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
