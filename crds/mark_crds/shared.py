"""Types that several kinds share: text with limits, decimals, references, resources, conditions. It must hold no kind of its own."""

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints

from mark_crds.model import Model, Rule

# Written out in full, or short with an exponent of one digit: then its one spelling is no longer than 24 characters, either.
DECIMAL_PATTERN = r"^((0|[1-9][0-9]*)(\.[0-9]+)?|(0|[1-9][0-9]{0,4})(\.[0-9]{1,12})?[eE][+-]?0?[0-9])$"
NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
PATH_PATTERN = r"^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$"
QUANTITY_PATTERN = r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"


def normal_decimal(text: str) -> str:
    """The one spelling of a decimal number: `2e-4`, `0.0002` and `0.00020` all become `0.0002`."""
    return format(Decimal(text).normalize(), "f")


DecimalText = Annotated[str, StringConstraints(pattern=DECIMAL_PATTERN, max_length=24), AfterValidator(normal_decimal)]
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=63)]
ObjectName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
WorkspacePath = Annotated[str, StringConstraints(pattern=PATH_PATTERN, max_length=512)]
Quantity = Annotated[str, StringConstraints(pattern=QUANTITY_PATTERN, max_length=20)]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$", max_length=64)]
Time = Annotated[str, StringConstraints(max_length=32), Field(json_schema_extra={"format": "date-time"})]
Sentence = Annotated[str, StringConstraints(max_length=1024)]
Word = Annotated[str, StringConstraints(max_length=64)]

Stage = Literal["ingest", "dataPrep", "lora", "reward", "ppo", "eval"]
MetricName = Literal["exactMatch", "f1", "rougeL", "bleu"]
CriterionName = Literal[
    "exactMatch", "f1", "rougeL", "bleu", "citationSupport", "abstentionPrecision", "abstentionRecall", "retrievalRecall"
]


class WorkspaceReference(Model):
    """The volume that holds corpus, collections, datasets, base models, adapters and reports."""

    claim_name: ObjectName
    """The PersistentVolumeClaim, in the run's own namespace. A run writes only under `runs/<uid>/` of it and publishes by rename."""


class BaseModelReference(Model):
    """The model that is fine-tuned: a folder of the workspace, or a pinned revision of a hub model."""

    path: WorkspacePath | None = None
    """A folder of the workspace with `config.json`, safetensors weights and a tokenizer."""
    hugging_face_id: (
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$", max_length=200)] | None
    ) = None
    """A hub model such as `org/name`; it is downloaded, so the cluster must reach the hub. Needs `revision`."""
    revision: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$", max_length=40)] | None = None
    """The commit of the hub model, 40 hexadecimal digits: branches move, commits do not."""

    rules = (
        Rule(
            cel="has(self.path) != has(self.huggingFaceId)",
            message="baseModel: set exactly one of path and huggingFaceId",
            check=lambda m: (m.path is None) != (m.hugging_face_id is None),
        ),
        Rule(
            cel="has(self.huggingFaceId) == has(self.revision)",
            message="baseModel.revision: goes with huggingFaceId, and pins it to a commit; set both or neither",
            check=lambda m: (m.hugging_face_id is None) == (m.revision is None),
        ),
    )


class ChromaServer(Model):
    """A Chroma server, instead of the embedded database of the workspace."""

    host: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
    """DNS name of the server."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """TCP port of the server."""


class Chroma(Model):
    """Where the ChromaDB collections live: embedded in the workspace (the default) or on a server."""

    path: WorkspacePath = "chroma"
    """Folder of the workspace that holds the embedded database; not used when `server` is set."""
    server: ChromaServer | None = None
    """Use this server instead of the embedded database."""


class DatasetReference(Model):
    """A dataset that an earlier run published."""

    path: WorkspacePath
    """Folder of the workspace, such as `datasets/<digest>`, with `train_sft.jsonl` and `val_sft.jsonl`."""


class Resources(Model):
    """What each Pod of a training or evaluation stage asks for."""

    nodes: Annotated[int, Field(ge=1, le=64)] = 1
    """Pods of a training stage, one a node. More than one needs a ReadWriteMany claim."""
    gpus_per_node: Annotated[int, Field(ge=0, le=16)] = 1
    """GPUs of each Pod; 0 trains on CPU."""
    gpu_resource: Annotated[str, StringConstraints(pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$", max_length=128)] = (
        "nvidia.com/gpu"
    )
    """The extended resource that stands for one GPU in this cluster, such as `nvidia.com/gpu` or `amd.com/gpu`."""
    cpu: Quantity = "4"
    """CPU request and limit of each Pod, such as `"8"` or `500m`."""
    memory: Quantity = "16Gi"
    """Memory request and limit of each Pod."""


class CpuResources(Model):
    """What each Pod of a stage that never uses a GPU asks for: preflight, ingest, dataPrep."""

    cpu: Quantity = "2"
    """CPU request and limit."""
    memory: Quantity = "8Gi"
    """Memory request and limit."""


class Toleration(Model):
    """A taint that the Pods tolerate, as in a Pod's `tolerations`."""

    key: Annotated[str, StringConstraints(max_length=253)] | None = None
    """The taint's key; absent together with operator Exists matches every taint."""
    operator: Literal["Exists", "Equal"] | None = None
    """How key and value are compared; Equal when absent."""
    value: Annotated[str, StringConstraints(max_length=63)] | None = None
    """The taint's value, with operator Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """The effect to tolerate; absent means all."""


NodeSelector = Annotated[
    dict[
        Annotated[str, StringConstraints(max_length=317)],
        Annotated[str, StringConstraints(max_length=63)],
    ],
    Field(max_length=16),
]


class Condition(Model):
    """One condition in the standard shape of Kubernetes."""

    type: Annotated[str, StringConstraints(max_length=64)]
    """Planned, Confirmed, Admitted, Progressing, Succeeded, Ready or Stalled."""
    status: Literal["True", "False", "Unknown"]
    """Whether the condition holds."""
    reason: Word
    """One CamelCase word for programs."""
    message: Sentence
    """One sentence for people: what happened, where, what to do."""
    last_transition_time: Time
    """When `status` last changed."""
    observed_generation: int | None = None
    """The generation of the spec that this was decided on."""
