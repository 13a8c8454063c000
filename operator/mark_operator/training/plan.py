"""From a TrainingRun's spec to its resolved work."""

from mark_crds.job_input import JobInput
from mark_crds.training_run import TrainingRunSpec

from mark_operator.run.means import Means
from mark_operator.run.plan import Work, replay_key
from mark_operator.seen import Body, RunKey
from mark_operator.settings import Settings


def resolve(key: RunKey, spec: Body, settings: Settings) -> Work:
    """The work of a TrainingRun; raises pydantic's ValidationError for a spec that cannot be used."""
    parsed = TrainingRunSpec.model_validate(spec)
    job_input = JobInput(
        kind="TrainingRun",
        namespace=key.namespace,
        name=key.name,
        replay_key=replay_key(key, parsed),
        stages=parsed.stages,
        base_model=parsed.base_model,
        dataset=parsed.dataset,
        ingest=parsed.ingest,
        data_prep=parsed.data_prep,
        lora=parsed.lora,
        rlhf=parsed.rlhf,
        evaluation=parsed.evaluation,
        distributed=parsed.distributed,
        tracking=parsed.tracking,
        output_model=parsed.output.model,
        nodes=parsed.resources.nodes,
        gpus_per_node=parsed.resources.gpus_per_node,
    )
    wandb = parsed.tracking.wandb
    secret = wandb.secret_name if wandb.mode == "online" else None
    means = Means(key, parsed, parsed.resources, parsed.cpu_resources, settings, api_key_secret=secret)
    return Work(job_input, means, _warnings(parsed))


def _warnings(spec: TrainingRunSpec) -> tuple[str, ...]:
    found = []
    if "lora" in spec.stages and spec.lora.epochs == 0:
        found.append("spec.lora.epochs is 0, which trains nothing; a confirmed run needs at least 1")
    found += _rlhf_warnings(spec)
    if set(spec.stages) & {"lora", "ppo"} and spec.output.model is None:
        found.append(
            "spec.output.model is not set, so no registry entry will be written; the adapter stays in the workspace"
        )
    if "eval" not in spec.stages and spec.output.model is not None:
        found.append("spec.stages has no eval, so the new version of the model will have no numbers")
    if set(spec.stages) & {"lora", "reward", "ppo"} and spec.resources.gpus_per_node == 0:
        found.append("spec.resources.gpusPerNode is 0, so training runs on CPU")
    return tuple(found)


def _rlhf_warnings(spec: TrainingRunSpec) -> tuple[str, ...]:
    listed, found = set(spec.stages) & {"reward", "ppo"}, []
    if listed and not spec.rlhf.enabled:
        found.append("spec.rlhf.enabled is false, but reward or ppo is listed; a confirmed run needs it to be true")
    if "reward" in listed and spec.rlhf.reward.epochs == 0:
        found.append("spec.rlhf.reward.epochs is 0, which trains nothing; a confirmed run needs at least 1")
    if "ppo" in listed and spec.rlhf.ppo.steps == 0:
        found.append("spec.rlhf.ppo.steps is 0, which trains nothing; a confirmed run needs at least 1")
    if listed == {"ppo"}:
        found.append("spec.stages has ppo without reward, whose model scores its answers; a confirmed run needs both")
    if "reward" in listed and spec.rlhf.preferences is None:
        found.append(
            "spec.rlhf.preferences is not set, so the reward model learns from pairs made by rules, not from what "
            "people judged"
        )
    if listed and (spec.resources.nodes > 1 or spec.resources.gpus_per_node > 1):
        found.append(
            "spec.resources asks for more than reward and ppo use: each runs as one process, on one node and at most "
            "one GPU"
        )
    return tuple(found)
