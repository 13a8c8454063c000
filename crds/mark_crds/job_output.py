"""All that a Job leaves behind for the operator: an exit code and a Result in its termination message. It must stay below the 4096 bytes that Kubernetes keeps."""

from enum import IntEnum
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from mark_crds.model import Model
from mark_crds.shared import Digest, Time, Word, WorkspacePath

# Reason of a Result of outcome Stopped: another run holds what the stage needs, such as the same work of a second cluster.
LOCKED = "Locked"

# Both reach terminals.
PRINTABLE = r"^[ -~]*$"
MEASURES_KEPT = 32
"""Headline numbers of a stage, at most; the message is cut from their end when it grows too long."""


class ExitCode(IntEnum):
    """What a trainer's exit code means. Any other code counts as machine trouble."""

    DONE = 0
    USER_MISTAKE = 64  # never retried
    BAD_DATA = 65  # never retried
    MACHINE_TROUBLE = 70  # retried
    STOPPED = 75  # stopped after a checkpoint: retried, not counted


class Artifact(Model):
    """One thing that a stage published in the workspace."""

    kind: Literal["collection", "dataset", "adapter", "rewardModel", "report", "page", "predictions"]
    """What it is."""
    path: WorkspacePath
    """Where it lies, relative to the workspace."""
    digest: Digest
    """sha256 of the file, or of the manifest of the folder."""


class Measure(Model):
    """One number of a result. Text, because floats have no one spelling."""

    name: Annotated[str, StringConstraints(max_length=64, pattern=PRINTABLE)]
    """What was measured, such as `tuned.retrieved.f1`."""
    value: Annotated[str, StringConstraints(max_length=24, pattern=PRINTABLE)]
    """The number, rounded for reading; the report holds it in full."""


class Adopted(Model):
    """An earlier run that had already done this work."""

    run_uid: Annotated[Word, StringConstraints(pattern=PRINTABLE)]
    """Uid of that run."""
    finished: Annotated[Time, StringConstraints(pattern=PRINTABLE)]
    """When it finished."""
    dataset_digest: Digest | None = None
    """Digest of the dataset it trained on."""


class Result(Model):
    """What a stage has to say at its end, for better or worse."""

    format_version: Literal[1] = 1
    """Version of this message."""
    stage: Word
    """The stage that speaks."""
    outcome: Literal["Done", "Adopted", "UserMistake", "BadData", "MachineTrouble", "Stopped"]
    """How it ended; agrees with the exit code."""
    reason: Word
    """One CamelCase word, such as `EmptyCorpus`."""
    message: Annotated[str, StringConstraints(max_length=1000)]
    """One or two sentences: what happened, which file or field, what to do."""
    artifacts: Annotated[tuple[Artifact, ...], Field(max_length=8)] = ()
    """What the stage published."""
    measures: Annotated[tuple[Measure, ...], Field(max_length=MEASURES_KEPT)] = ()
    """Headline numbers."""
    adopted: Adopted | None = None
    """Set by preflight when the work is already done."""
