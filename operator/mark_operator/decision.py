"""What to do about a run: values only, carried out elsewhere."""

from dataclasses import dataclass
from typing import Any, Literal

from mark_crds.registered_model import RegisteredModelStatus
from mark_crds.run import RunStatus

from mark_operator.seen import Body


@dataclass(frozen=True)
class Event:
    """A Kubernetes Event for people who describe the run."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True)
class Deletion:
    """A child to delete, this very one and no later object of its name."""

    kind: str
    name: str
    uid: str


@dataclass(frozen=True)
class Suspension:
    """A Job whose `suspend` shall have this value, this very one and no later object of its name."""

    job: str
    uid: str
    suspend: bool


@dataclass(frozen=True)
class ModelWrite:
    """One Model's new status, and its spec in case it must be created first."""

    name: str
    namespace: str
    spec: dict[str, Any]
    status: RegisteredModelStatus


@dataclass(frozen=True)
class Decision:
    """One step: children first, then the registry, then one status write, then the events."""

    status: RunStatus | None = None
    create: tuple[Body, ...] = ()
    delete: tuple[Deletion, ...] = ()
    suspend: tuple[Suspension, ...] = ()
    model: ModelWrite | None = None
    again_in: float | None = None
