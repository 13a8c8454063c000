"""The kind Model: an entry of the registry, which outlives the run that made it. It must hold its fields and their limits, nothing else."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from mark_crds.job_output import MEASURES_KEPT, Measure
from mark_crds.model import Model
from mark_crds.shared import Digest, ObjectName, Time, Word, WorkspacePath

VERSIONS_KEPT = 10


class RegisteredModelSpec(Model):
    """What people decide about a model."""

    family: Literal["transformer", "mamba", "reinforcementLearning"]
    """Architecture or origin of the model."""
    prefer_rag_finetuned: bool = True
    """Whether the AutoPipeline prefers this model over its base."""
    promoted_version: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$", max_length=64)] = ""
    """Digest of the version to use; set it to promote or roll back. Empty takes the newest version whose EvalRun passed."""


class ModelVersion(Model):
    """One tuned adapter."""

    digest: Digest
    """Digest of the adapter's manifest."""
    path: WorkspacePath
    """Folder of the adapter in the workspace."""
    claim_name: ObjectName
    """Claim of that workspace."""
    run: ObjectName
    """The TrainingRun that made it."""
    run_uid: Word
    """Uid of that run."""
    plan_hash: Digest
    """Hash of the plan that was confirmed."""
    base: Annotated[str, StringConstraints(max_length=512)]
    """Path or hub id of the base model."""
    dataset: Digest | None = None
    """Digest of the dataset it was tuned on."""
    headline: Annotated[tuple[Measure, ...], Field(max_length=MEASURES_KEPT)] = ()
    """Headline numbers of its evaluation."""
    evaluation: Annotated[str, StringConstraints(max_length=512)] | None = None
    """Path of the evaluation report."""
    passed: bool | None = None
    """Whether an EvalRun with pass criteria was met; absent when none has judged it."""
    created: Time
    """When the version was entered."""


class RegisteredModelStatus(Model):
    """What the operator knows of a model."""

    versions: Annotated[tuple[ModelVersion, ...], Field(max_length=VERSIONS_KEPT)] = ()
    """The last versions and the one in use, oldest first."""
    current: Annotated[str, StringConstraints(max_length=64)] = ""
    """Digest of the version that the AutoPipeline uses; empty while none is promoted."""


class RegisteredModel(Model):
    """A Model is an entry of the registry. It has no owner, so it outlives the run that made it."""

    spec: RegisteredModelSpec
    """What people decide about the model."""
    status: RegisteredModelStatus | None = None
    """What the operator knows of the model."""
