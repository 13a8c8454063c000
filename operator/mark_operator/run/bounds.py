"""What a planned stage can take and write at most, as far as the spec alone tells. Pure; every number is an upper
bound, named as such."""

from decimal import Decimal
from typing import Any

from mark_crds import names
from mark_crds.job_input import JobInput
from mark_crds.shared import normal_decimal

from mark_operator.run.means import Means

SECONDS_PER_HOUR = 3600
HUNDREDTH = Decimal("0.01")


def bounds(job_input: JobInput, means: Means, stage: str) -> dict[str, Any]:
    """The fields of a PlannedStage that are upper bounds, and where it writes."""
    rows = rows_at_most(job_input)
    lora = job_input.lora
    steps = tokens = None
    if stage == "lora" and rows is not None:
        tokens = rows * lora.epochs * lora.max_length
        processes = means.nodes(stage) * max(1, means.gpus_per_node(stage))
        steps = -(-rows * lora.epochs // (lora.batch_size * lora.gradient_accumulation_steps * processes))
    if stage == "reward":
        steps = reward_steps_at_most(job_input)
    if stage == "ppo":
        steps = job_input.rlhf.ppo.steps
    return {
        "steps_at_most": steps,
        "tokens_at_most": tokens,
        "gpu_hours_at_most": gpu_hours(means, (stage,)),
        "writes": writes(job_input, stage),
    }


def rows_at_most(job_input: JobInput) -> int | None:
    """Rows of the dataset that this run makes; None for one that exists already, which nobody has counted yet."""
    return job_input.data_prep.max_samples if "dataPrep" in job_input.stages else None


def reward_steps_at_most(job_input: JobInput) -> int | None:
    """Steps over a pair a row; None where the pairs are in a file that nobody has counted yet."""
    rows, reward = rows_at_most(job_input), job_input.rlhf.reward
    if rows is None or job_input.rlhf.preferences is not None:
        return None
    return -(-rows * reward.epochs // (reward.batch_size * reward.gradient_accumulation_steps))


def gpu_hours(means: Means, stages: tuple[str, ...]) -> str | None:
    """GPU-hours of these stages when each attempt lasts until its deadline; None when none asks for a GPU."""
    gpus = sum(means.nodes(stage) * means.gpus_per_node(stage) for stage in stages)
    hours = Decimal(gpus * means.spec.active_deadline_seconds) / SECONDS_PER_HOUR
    return normal_decimal(str(hours.quantize(HUNDREDTH))) if gpus else None


def writes(job_input: JobInput, stage: str) -> tuple[str, ...]:
    """Where a stage publishes; every stage also writes in the run's own folder."""
    chroma = job_input.data_prep.chroma
    database = f"Chroma server {chroma.server.host}:{chroma.server.port}" if chroma.server else chroma.path
    published = {
        "ingest": (f"{database}, collection {job_input.data_prep.collection}",),
        "dataPrep": (f"{names.DATASETS_FOLDER}/<digest>",),
        "lora": (f"{names.ADAPTERS_FOLDER}/<digest>",),
        "reward": (f"{names.REWARD_MODELS_FOLDER}/<digest>",),
        "ppo": (f"{names.ADAPTERS_FOLDER}/<digest>",),
        "eval": (names.REPORTS_FOLDER,),
    }
    return published.get(stage, ())
