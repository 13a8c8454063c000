"""One run at one moment, with the few questions that every rule asks of it. It decides nothing."""

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from mark_crds import names
from mark_crds.run import RunStatus, StageStatus, State

from mark_operator import clock, conditions
from mark_operator.conditions import Decided
from mark_operator.decision import Decision
from mark_operator.messages import Note
from mark_operator.seen import Body, Seen
from mark_operator.settings import Settings

# States of a stage whose newest attempt has not ended.
OPEN = ("Pending", "Running")


@dataclass(frozen=True)
class View:
    """What was seen, the settings, and the time of this look."""

    seen: Seen
    settings: Settings
    now: datetime

    @cached_property
    def status(self) -> RunStatus:
        return status_of(self.seen.run)

    @property
    def spec(self) -> Body:
        found: Body = self.seen.run["spec"]
        return found

    @property
    def confirmed(self) -> bool:
        return bool(self.spec.get("confirm", False)) and not self.spec.get("dryRun", True)

    @property
    def suspended(self) -> bool:
        return bool(self.spec.get("suspend", False))

    @property
    def now_text(self) -> str:
        return clock.text_of(self.now)

    def entry(self, stage: str) -> StageStatus | None:
        """What the status says of a stage so far."""
        return next((entry for entry in self.status.stages if entry.stage == stage), None)

    def stand(
        self,
        state: State,
        why: Note,
        *,
        more: Decided = (),
        stalled: bool = False,
        **changes: Any,
    ) -> RunStatus:
        """The status with a new state, its conditions and further changes."""
        merged = conditions.merge(
            self.status.conditions,
            (*more, *conditions.conditions_of(state, why, stalled=stalled)),
            now=self.now_text,
            generation=self.seen.generation,
        )
        update = {"conditions": merged, "state": state, "observed_generation": self.seen.generation, **changes}
        return self.status.model_copy(update=update)

    def end(
        self, state: State, why: Note, *, stages: tuple[StageStatus, ...] | None = None, **changes: Any
    ) -> RunStatus:
        """The status of a run that ends now, and with it every stage that is still open."""
        closed = {"state": "Cancelled", "finished_at": self.now_text}
        entries = tuple(
            entry.model_copy(update=closed) if entry.state in OPEN else entry
            for entry in (self.status.stages if stages is None else stages)
        )
        return self.stand(state, why, stages=entries, finished_at=self.now_text, **changes)

    def fail(self, why: Note, **changes: Any) -> Decision:
        """The end, with a reason. What follows an end is looked at at once."""
        return Decision(status=self.end("Failed", why, **changes), again_in=0)


def status_of(run: Body) -> RunStatus:
    """The status of a run as it stands; empty for a new one."""
    return RunStatus.model_validate(run.get("status") or {})


def is_terminal(status: RunStatus) -> bool:
    """Whether the run has ended; terminal is sticky."""
    return status.finished_at is not None


def replaced(stages: tuple[StageStatus, ...], entry: StageStatus) -> tuple[StageStatus, ...]:
    """The stages with this entry in place of the older one, or at the end."""
    if any(old.stage == entry.stage for old in stages):
        return tuple(entry if old.stage == entry.stage else old for old in stages)
    return (*stages, entry)


def of_run(pod: Body, uid: str) -> bool:
    """Whether the Pod belongs to this very run, not to an earlier one of its name."""
    return bool(pod["metadata"].get("labels", {}).get(names.RUN_UID_LABEL) == uid)
