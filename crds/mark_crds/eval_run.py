"""The kind EvalRun: measures a model and says whether it may be promoted. It must hold its fields, their limits and their rules, nothing else."""

from typing import Annotated, Literal

from pydantic import Field

from mark_crds.model import Model, Rule
from mark_crds.run import NAME_RULE, SWITCH_RULES, RunSpec, RunStatus, transition_rules
from mark_crds.shared import (
    BaseModelReference,
    Chroma,
    CpuResources,
    CriterionName,
    DatasetReference,
    DecimalText,
    MetricName,
    ObjectName,
    Resources,
    WorkspacePath,
)
from mark_crds.stages import ALL_METRICS, CollectionName


class ModelReference(Model):
    """The model to measure: a registry entry, an adapter's folder, or the AutoPipeline's choice."""

    name: ObjectName | None = None
    """A Model of this namespace; its current version is measured."""
    path: WorkspacePath | None = None
    """Folder of an adapter in the workspace."""
    auto: bool = False
    """true takes what the AutoPipeline picks: the promoted model when it is preferred, else the base model."""

    rules = (
        Rule(
            cel="(has(self.name) ? 1 : 0) + (has(self.path) ? 1 : 0) + (self.auto ? 1 : 0) == 1",
            message="model: set exactly one of name, path and auto: true",
            check=lambda m: (m.name is not None) + (m.path is not None) + m.auto == 1,
        ),
    )


class Rag(Model):
    """Whether answers are also measured with retrieved passages."""

    enabled: bool = True
    """false measures the closed book alone."""
    collection: CollectionName = "pdf_docs"
    """The ChromaDB collection that passages come from."""
    top_k: Annotated[int, Field(ge=1, le=20)] = 3
    """Passages retrieved for a question."""
    chroma: Chroma = Chroma()
    """Where the collection lives."""


class PassCriterion(Model):
    """One number that must be reached. All criteria together decide promotion."""

    metric: CriterionName
    """A metric of `metrics`, or a number that is always measured: citationSupport, the share of answers whose words stand in their sources, of those that can be checked;
    abstentionPrecision and abstentionRecall, for datasets with questions that their documents do not answer; retrievalRecall, the share of the right answers' characters among the passages.
    A number that the evaluation could not measure is not reached."""
    condition: Literal["closedBook", "retrieved"]
    """Without or with retrieved passages."""
    minimum: DecimalText
    """The least value that passes, between 0 and 1, as text such as `"0.40"`."""


class EvalRunSpec(RunSpec):
    """Which model to measure, on what, and what counts as a pass."""

    model: ModelReference
    """The model to measure."""
    base_model: BaseModelReference | None = None
    """The base of the adapter, measured beside it; absent takes the one that the adapter's manifest names."""
    dataset: DatasetReference
    """The dataset whose validation rows are answered."""
    metrics: Annotated[tuple[MetricName, ...], Field(min_length=1, max_length=4)] = ALL_METRICS
    """Metrics of the report."""
    rag: Rag = Rag()
    """Whether answers are also measured with retrieved passages."""
    max_items: Annotated[int, Field(ge=1, le=100000)] = 200
    """Validation rows that are answered at most."""
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 64
    """Tokens of an answer at most."""
    pass_: Annotated[tuple[PassCriterion, ...], Field(max_length=16, alias="pass")] = ()
    """What must be reached; absent decides nothing."""
    resources: Resources = Resources()
    """What the evaluation asks for; one node of it is used."""
    cpu_resources: CpuResources = CpuResources()
    """What preflight asks for; never a GPU."""

    rules = (
        *SWITCH_RULES,
        Rule(
            cel="!self.model.auto || has(self.baseModel)",
            message="spec.baseModel: model.auto falls back to the base model, so name one",
            check=lambda m: not m.model.auto or m.base_model is not None,
        ),
        Rule(
            cel="self.rag.enabled || !self.pass.exists(p, p.condition == 'retrieved')",
            message="spec.pass: condition retrieved needs rag.enabled: true",
            check=lambda m: m.rag.enabled or not any(p.condition == "retrieved" for p in m.pass_),
        ),
        Rule(
            cel="self.pass.all(p, !(p.metric in ['exactMatch', 'f1', 'rougeL', 'bleu']) || self.metrics.exists(m, m == p.metric))",
            message="spec.pass: a criterion's exactMatch, f1, rougeL or bleu must be listed in spec.metrics",
            check=lambda m: all(p.metric in m.metrics for p in m.pass_ if p.metric in ALL_METRICS),
        ),
        Rule(
            cel="self.pass.all(p, p.metric != 'retrievalRecall' || p.condition == 'retrieved')",
            message="spec.pass: retrievalRecall goes with condition: retrieved",
            check=lambda m: all(p.metric != "retrievalRecall" or p.condition == "retrieved" for p in m.pass_),
        ),
    )


class EvalRun(Model):
    """An EvalRun measures a model, closed book and with retrieval, and decides whether it may be promoted. It plans first, like a TrainingRun."""

    spec: EvalRunSpec
    """Which model to measure, on what, and what counts as a pass."""
    status: RunStatus | None = None
    """What the operator knows of the run."""

    rules = (NAME_RULE, *transition_rules(EvalRunSpec))
