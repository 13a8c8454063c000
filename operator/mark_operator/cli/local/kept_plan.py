"""The plan of a run of this machine, kept in the workspace from the first look on: what was seen is what is run.

It must not start anything.
"""

import json
import uuid
from dataclasses import dataclass
from pathlib import Path

from mark_crds import names
from mark_crds.job_input import JobInput

from mark_operator.cli.errors import RefusedError
from mark_operator.cli.session import Json
from mark_operator.run.plan import Rendering, plan_digest

FILE = "plan.json"


@dataclass(frozen=True)
class KeptPlan:
    """A plan as its ConfigMap would hold it, and for which stages it was shown."""

    data: dict[str, str]
    hash: str
    seen_stages: tuple[str, ...] = ()

    @property
    def job_input(self) -> JobInput:
        return JobInput.model_validate_json(self.data[names.JOB_INPUT_KEY])

    def job(self, stage: str) -> Json:
        """The rendered Job of a stage."""
        jobs: list[Json] = json.loads(self.data[names.JOBS_KEY])
        return next(job for job in jobs if job["metadata"]["labels"][names.STAGE_LABEL] == stage)


def run_uid(rendering: Rendering) -> str:
    """What stands for the uid that the API server would give: the same plan goes on, another one is another run."""
    return f"local-{rendering.means.key.name}-{rendering.hash[:12]}"


def read_plan(folder: Path, rendering: Rendering) -> KeptPlan:
    """The plan as it was kept when it was first seen; seen for no stage when it was not."""
    path = folder / FILE
    if not path.exists():
        return KeptPlan(rendering.data, rendering.hash)
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        plan = KeptPlan(kept["data"], rendering.hash, tuple(kept["seenStages"]))
        whole = plan_digest(plan.data) == rendering.hash
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise RefusedError(
            f"{path}: is not the plan that its folder is named after", "somebody changed it: remove the file"
        )
    return plan


def keep_seen(folder: Path, plan: KeptPlan, stages: tuple[str, ...]) -> None:
    """Record that the plan was shown for these stages; the file is whole or absent."""
    folder.mkdir(parents=True, exist_ok=True)
    seen = [stage for stage in names.STAGE_ORDER if stage in {*plan.seen_stages, *stages}]
    temporary = folder / f".{FILE}.{uuid.uuid4().hex[:8]}.tmp"
    temporary.write_text(json.dumps({"data": plan.data, "seenStages": seen}, indent=1) + "\n", encoding="utf-8")
    temporary.replace(folder / FILE)
