"""The kind TrainingRun: from documents to a tuned and measured model. It must hold its fields, their limits and their rules, nothing else."""

from typing import Annotated

from pydantic import Field

from mark_crds.model import Model, Rule
from mark_crds.names import STAGE_ORDER
from mark_crds.run import NAME_RULE, SWITCH_RULES, RunSpec, RunStatus, transition_rules
from mark_crds.shared import BaseModelReference, CpuResources, DatasetReference, ObjectName, Resources, Stage
from mark_crds.stages import DataPrep, Distributed, Evaluation, Ingest, Lora, Rlhf, Tracking


class Output(Model):
    """What the run leaves in the registry."""

    model: ObjectName | None = None
    """Name of the Model that is created, or gets a new version, when the run succeeds; absent writes none."""


def _listed(stage: str) -> str:
    return f"self.stages.exists(s, s == '{stage}')"


class TrainingRunSpec(RunSpec):
    """What to train, from what, and with which means."""

    stages: Annotated[tuple[Stage, ...], Field(min_length=1, max_length=6)] = ("dataPrep", "lora")
    """The stages to run, an ordered subset of ingest, dataPrep, lora, reward, ppo, eval."""
    base_model: BaseModelReference | None = None
    """The model that is tuned; needed by lora, reward, ppo and eval."""
    dataset: DatasetReference | None = None
    """A dataset of an earlier run; needed when lora, ppo or eval is listed without dataPrep, refused together with dataPrep."""
    ingest: Ingest = Ingest()
    """PDF files into the collection."""
    data_prep: DataPrep = DataPrep()
    """Question-answer data from the collection."""
    lora: Lora = Lora()
    """Fine-tuning."""
    rlhf: Rlhf = Rlhf()
    """Reward model and policy optimisation; off by default."""
    evaluation: Evaluation = Evaluation()
    """Measuring the tuned model beside its base."""
    resources: Resources = Resources()
    """What lora, reward, ppo and eval ask for. eval takes one node of it; reward and ppo, each one process, one node and at most one GPU."""
    cpu_resources: CpuResources = CpuResources()
    """What preflight, ingest and dataPrep ask for; never a GPU."""
    distributed: Distributed = Distributed()
    """How the processes of a training stage work together."""
    tracking: Tracking = Tracking()
    """Where training measures go, beside the logs in the workspace."""
    output: Output = Output()
    """What the run leaves in the registry."""

    rules = (
        *SWITCH_RULES,
        Rule(
            cel="["
            + ", ".join(f"'{stage}'" for stage in STAGE_ORDER)
            + "].filter(s, self.stages.exists(t, t == s)) == self.stages",
            message=f"spec.stages: list each stage once and in this order: {', '.join(STAGE_ORDER)}",
            check=lambda m: tuple(s for s in STAGE_ORDER if s in m.stages) == m.stages,
        ),
        Rule(
            cel="!self.stages.exists(s, s == 'lora' || s == 'reward' || s == 'ppo' || s == 'eval') || has(self.baseModel)",
            message="spec.baseModel: lora, reward, ppo and eval need one; set baseModel.path to a folder of the workspace",
            check=lambda m: not set(m.stages) & {"lora", "reward", "ppo", "eval"} or m.base_model is not None,
        ),
        Rule(
            cel="!self.stages.exists(s, s == 'lora' || s == 'ppo' || s == 'eval') "
            f"|| {_listed('dataPrep')} || has(self.dataset)",
            message="spec.dataset: lora, ppo and eval need data; list dataPrep in spec.stages, or set dataset.path to a published dataset",
            check=lambda m: (
                not set(m.stages) & {"lora", "ppo", "eval"} or "dataPrep" in m.stages or m.dataset is not None
            ),
        ),
        Rule(
            cel=f"!{_listed('reward')} || {_listed('dataPrep')} || has(self.dataset) || has(self.rlhf.preferences)",
            message="spec.rlhf.preferences: reward needs pairs; set preferences.path to what people judged, or list dataPrep, or set dataset.path",
            check=lambda m: (
                "reward" not in m.stages
                or "dataPrep" in m.stages
                or m.dataset is not None
                or m.rlhf.preferences is not None
            ),
        ),
        Rule(
            cel=f"!{_listed('dataPrep')} || !has(self.dataset)",
            message="spec.dataset: not together with the stage dataPrep, which makes the data; drop one of them",
            check=lambda m: "dataPrep" not in m.stages or m.dataset is None,
        ),
        Rule(
            cel=f"!{_listed('eval')} || {_listed('lora')} || {_listed('ppo')}",
            message="spec.stages: eval measures the model that lora or ppo tunes; list one of them too, or measure an existing model with an EvalRun",
            check=lambda m: "eval" not in m.stages or bool(set(m.stages) & {"lora", "ppo"}),
        ),
        Rule(
            cel=f"!self.confirm || !{_listed('lora')} || self.lora.epochs > 0",
            message="spec.lora.epochs: is 0, which trains nothing; set at least 1 before confirming, or drop lora from spec.stages",
            check=lambda m: not m.confirm or "lora" not in m.stages or m.lora.epochs > 0,
        ),
        Rule(
            cel=f"!self.confirm || self.rlhf.enabled || !({_listed('reward')} || {_listed('ppo')})",
            message="spec.rlhf.enabled: is false, but reward or ppo is listed; set rlhf.enabled: true before confirming, or drop them",
            check=lambda m: not m.confirm or m.rlhf.enabled or not set(m.stages) & {"reward", "ppo"},
        ),
        Rule(
            cel=f"!self.confirm || !{_listed('reward')} || self.rlhf.reward.epochs > 0",
            message="spec.rlhf.reward.epochs: is 0, which trains nothing; set at least 1 before confirming, or drop reward from spec.stages",
            check=lambda m: not m.confirm or "reward" not in m.stages or m.rlhf.reward.epochs > 0,
        ),
        Rule(
            cel=f"!self.confirm || !{_listed('ppo')} || self.rlhf.ppo.steps > 0",
            message="spec.rlhf.ppo.steps: is 0, which trains nothing; set at least 1 before confirming, or drop ppo from spec.stages",
            check=lambda m: not m.confirm or "ppo" not in m.stages or m.rlhf.ppo.steps > 0,
        ),
        Rule(
            cel=f"!self.confirm || !{_listed('ppo')} || {_listed('reward')}",
            message="spec.stages: ppo is scored by the reward model of the same run; list reward before confirming, or drop ppo",
            check=lambda m: not m.confirm or "ppo" not in m.stages or "reward" in m.stages,
        ),
    )


class TrainingRun(Model):
    """A TrainingRun turns documents into a tuned and measured model. It plans first and runs only after `dryRun: false` and `confirm: true`."""

    spec: TrainingRunSpec
    """What to train, from what, and with which means."""
    status: RunStatus | None = None
    """What the operator knows of the run."""

    rules = (NAME_RULE, *transition_rules(TrainingRunSpec))
