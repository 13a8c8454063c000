"""What one look at the cluster found, as frozen facts. It must hold no rule."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from mark_crds import names

Body = dict[str, Any]

# Fields of a run's status that the progress server writes.
TOLD_BY_TRAINERS = ("progress", "lastCheckpoint")
# What the API server changes at every write, whatever is written.
BOOKKEEPING = ("resourceVersion", "managedFields")


class RunKey(NamedTuple):
    """Which run: enough to find it, nothing else."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


@dataclass(frozen=True)
class Answer:
    """What the API server said to one question:
    an object, no object, a refusal with its reason, or nothing we may know."""

    outcome: Literal["Found", "Missing", "Refused", "Unknown"]
    items: tuple[Body, ...] = ()
    message: str = ""

    @property
    def item(self) -> Body:
        return self.items[0]


UNKNOWN = Answer("Unknown", message="not asked")


@dataclass(frozen=True)
class Findings:
    """The prerequisites of a plan, as they were found."""

    claim: Answer = UNKNOWN
    storage_class: Answer = UNKNOWN
    service_account: Answer = UNKNOWN
    nodes: Answer = UNKNOWN
    quotas: Answer = UNKNOWN
    freeze: Answer = UNKNOWN
    jobs: dict[str, Answer] = field(default_factory=dict)
    pods: dict[str, Answer] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """One run with all that belongs to it, read live."""

    key: RunKey
    run: Body
    plan_object: Body | None = None
    jobs: tuple[Body, ...] = ()
    pods: tuple[Body, ...] = ()
    models: tuple[Body, ...] = ()
    quotas: tuple[Body, ...] = ()
    """Read when a Job lacks Pods for longer than usual."""
    authority: str | None = None

    @property
    def uid(self) -> str:
        return str(self.run["metadata"]["uid"])

    @property
    def generation(self) -> int:
        return int(self.run["metadata"]["generation"])

    @property
    def being_deleted(self) -> bool:
        return "deletionTimestamp" in self.run["metadata"]

    @property
    def stored_plan(self) -> Body | None:
        """The ConfigMap with the confirmed plan; not that of an earlier run of the same name."""
        return self.plan_object if self.plan_object is not None and owned_by(self.plan_object, self.uid) else None

    @property
    def foreign_plan(self) -> bool:
        """Whether the plan's name is taken by an object that does not belong to this run."""
        return self.plan_object is not None and self.stored_plan is None

    @property
    def own_jobs(self) -> dict[str, Body]:
        """The Jobs that this very run owns, by name; not those of an earlier run of the same name."""
        return {job["metadata"]["name"]: job for job in self.jobs if owned_by(job, self.uid)}

    @property
    def foreign_jobs(self) -> frozenset[str]:
        """Names of Jobs that carry the run's labels but belong to another."""
        return frozenset(job["metadata"]["name"] for job in self.jobs if not owned_by(job, self.uid))


def owned_by(item: Body, uid: str) -> bool:
    """Whether one of the object's ownerReferences has this uid."""
    return any(owner["uid"] == uid for owner in item["metadata"].get("ownerReferences", ()))


def key_from_labels(namespace: str, labels: dict[str, str]) -> RunKey | None:
    """The run that a labelled child belongs to."""
    kind, name = labels.get(names.KIND_LABEL), labels.get(names.RUN_LABEL)
    if kind not in names.KIND_LETTERS or not name:
        return None
    return RunKey(kind, namespace, name)


def is_settled(body: Mapping[str, Any]) -> bool:
    """Whether a run has ended, its status is of its newest generation, and no clean-up is asked for."""
    status, spec = body.get("status", {}), body.get("spec", {})
    current = status.get("observedGeneration") == body["metadata"].get("generation")
    return "finishedAt" in status and current and "ttlSecondsAfterFinished" not in spec


def essence(body: Mapping[str, Any]) -> bytes:
    """A digest of all in a run that a pass may act on. Progress counts for one that is said to make none: a look takes
    that back at once."""
    metadata = {name: value for name, value in body["metadata"].items() if name not in BOOKKEEPING}
    status = body.get("status", {})
    silent = any(condition["reason"] == "NoProgress" for condition in status.get("conditions", ()))
    left_out = () if silent else TOLD_BY_TRAINERS
    parts = [metadata, body.get("spec", {}), {name: value for name, value in status.items() if name not in left_out}]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).digest()
