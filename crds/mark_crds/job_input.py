"""The one file that every Job of a run reads at its start. It is resolved: no default is left to fill. It must never hold a run's uid or a time, so that equal work renders to equal bytes."""

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from mark_crds.model import Model
from mark_crds.shared import BaseModelReference, DatasetReference, Digest, ObjectName, Stage, WorkspacePath
from mark_crds.stages import DataPrep, Distributed, Evaluation, Ingest, Lora, Rlhf, Tracking

FORMAT_VERSION = 1


class EvaluatedModel(Model):
    """The model that an EvalRun measures, resolved."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=253)]
    """What the report calls it: the registry entry's name, or the last part of the adapter's path."""
    adapter_path: WorkspacePath | None = None
    """Folder of the adapter in the workspace; absent measures the base model alone."""
    adapter_digest: Digest | None = None
    """Digest that the adapter's manifest must have; absent when the spec named a path without one."""


class JobInput(Model):
    """The whole work of one run. Each Job gets the same file and the name of its stage, the run's uid and its attempt as arguments."""

    format_version: Literal[1] = 1
    """Version of this file; a trainer refuses any other."""
    kind: Literal["TrainingRun", "EvalRun"]
    """Kind of the run."""
    namespace: ObjectName
    """Namespace of the run."""
    name: ObjectName
    """Name of the run."""
    replay_key: Digest
    """Equal for equal work of the same run name; a finished result under it is adopted instead of trained again."""
    stages: Annotated[tuple[Stage, ...], Field(max_length=6)]
    """The stages of the run, in order, without preflight."""
    base_model: BaseModelReference | None = None
    """The base model; absent when no stage needs one."""
    dataset: DatasetReference | None = None
    """The dataset to train on and to be judged by; absent when the run makes its own."""
    evaluated_model: EvaluatedModel | None = None
    """For an EvalRun: what is measured."""
    ingest: Ingest
    """Settings of the stage ingest."""
    data_prep: DataPrep
    """Settings of the stage dataPrep; its collection and Chroma address serve ingest and eval too."""
    lora: Lora
    """Settings of the stage lora."""
    rlhf: Rlhf
    """Settings of the stages reward and ppo."""
    evaluation: Evaluation
    """Settings of the stage eval."""
    distributed: Distributed = Distributed()
    """How the processes of a training stage work together."""
    tracking: Tracking = Tracking()
    """Where training measures go."""
    output_model: ObjectName | None = None
    """Name of the registry entry that the run writes."""
    nodes: Annotated[int, Field(ge=1, le=64)] = 1
    """Pods of a training stage."""
    gpus_per_node: Annotated[int, Field(ge=0, le=16)] = 0
    """GPUs of each Pod of a training stage."""


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: keys sorted, no spaces, non-ASCII as it is. Floats are refused: they have no one spelling."""
    _refuse_floats(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_of(value: Any) -> str:
    """sha256 over the canonical JSON of a value, 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def _refuse_floats(value: Any) -> None:
    if isinstance(value, float):
        raise TypeError(f"{value!r}: write decimals as text, floats have no one spelling")
    if isinstance(value, dict):
        for item in value.values():
            _refuse_floats(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _refuse_floats(item)
