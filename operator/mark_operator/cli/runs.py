"""Which run a person means, and reading it. It must decide nothing about runs."""

from dataclasses import dataclass

from mark_crds import names

from mark_operator.cli.errors import InputError, NotFoundError
from mark_operator.cli.session import Json, Session, own_path

KIND_NAMES = {
    "TrainingRun": ("trun", "trainingrun", "trainingruns"),
    "EvalRun": ("erun", "evalrun", "evalruns"),
}
FINISHED_STATES = ("Succeeded", "Adopted", "Failed", "Cancelled")
GOOD_STATES = ("Succeeded", "Adopted")


@dataclass(frozen=True)
class RunReference:
    """A run by kind and name."""

    kind: str
    name: str

    @property
    def argument(self) -> str:
        """How a person names it on the command line."""
        return self.name if self.kind == "TrainingRun" else f"{KIND_NAMES[self.kind][0]}/{self.name}"


def parse_reference(text: str, kind: str | None = None) -> RunReference:
    """`NAME`, `trun/NAME` or `erun/NAME`; without a kind it is a TrainingRun."""
    prefix, slash, name = text.partition("/")
    if not slash:
        return RunReference(kind or "TrainingRun", text)
    for known, spellings in KIND_NAMES.items():
        if prefix.lower() in (*spellings, *(f"{s}.{names.GROUP}" for s in spellings)):
            if kind not in (None, known):
                raise InputError(f"{text} is a {known}, but --kind says {kind}", "drop one of them")
            return RunReference(known, name)
    raise InputError(f"{text}: {prefix} is no kind of run", "write trun/NAME or erun/NAME, or the name alone")


def read_run(session: Session, reference: RunReference) -> Json:
    """The run as it stands; says so when there is one of the other kind."""
    try:
        return session.get(own_path(reference.kind, session.namespace, reference.name))
    except NotFoundError as error:
        if "the requested resource" in error.message:
            raise
        raise NotFoundError(
            f"there is no {reference.kind} {reference.name} in the namespace {session.namespace}",
            _other_kind(session, reference) or "`mark status` lists the runs; look at --namespace",
        ) from error


def _other_kind(session: Session, reference: RunReference) -> str:
    other = RunReference("EvalRun" if reference.kind == "TrainingRun" else "TrainingRun", reference.name)
    try:
        session.get(own_path(other.kind, session.namespace, other.name))
    except NotFoundError:
        return ""
    spelling = KIND_NAMES[other.kind][0]
    return f"there is a {other.kind} of that name: write {spelling}/{reference.name}"


def state_of(run: Json) -> str:
    """The word that stands for the run's state; empty while the operator has not seen it."""
    return str(run.get("status", {}).get("state") or "")


def is_current(run: Json) -> bool:
    """Whether the status was made from the spec as it is now."""
    return bool(run.get("status", {}).get("observedGeneration") == run["metadata"].get("generation"))
