"""From an EvalRun's spec to its resolved work: the model that it names is pinned to one version here."""

from mark_crds.eval_run import EvalRunSpec
from mark_crds.job_input import EvaluatedModel, JobInput
from mark_crds.registered_model import ModelVersion
from mark_crds.stages import DataPrep, Evaluation, Ingest, Lora, Rlhf

from mark_operator.messages import note, shorten
from mark_operator.registry.autopipeline import choose
from mark_operator.registry.versions import status_of, version_to_measure
from mark_operator.run.means import Means
from mark_operator.run.plan import CannotPlanError, Work, replay_key
from mark_operator.seen import Body, RunKey
from mark_operator.settings import Settings


def resolve(key: RunKey, spec: Body, settings: Settings, models: tuple[Body, ...]) -> Work:
    """The work of an EvalRun; raises pydantic's ValidationError for a spec that cannot be used, CannotPlanError for a
    model that is not there."""
    parsed = EvalRunSpec.model_validate(spec)
    evaluated, warnings = _evaluated(parsed, models)
    job_input = JobInput(
        kind="EvalRun",
        namespace=key.namespace,
        name=key.name,
        replay_key=replay_key(key, parsed),
        stages=("eval",),
        base_model=parsed.base_model,
        dataset=parsed.dataset,
        evaluated_model=evaluated,
        ingest=Ingest(),
        data_prep=DataPrep(collection=parsed.rag.collection, chroma=parsed.rag.chroma, top_k=parsed.rag.top_k),
        lora=Lora(),
        rlhf=Rlhf(),
        evaluation=Evaluation(
            metrics=parsed.metrics,
            rag=parsed.rag.enabled,
            max_items=parsed.max_items,
            max_new_tokens=parsed.max_new_tokens,
        ),
        gpus_per_node=parsed.resources.gpus_per_node,
    )
    means = Means(key, parsed, parsed.resources, parsed.cpu_resources, settings)
    return Work(job_input, means, warnings)


def _evaluated(spec: EvalRunSpec, models: tuple[Body, ...]) -> tuple[EvaluatedModel, tuple[str, ...]]:
    if spec.model.path is not None:
        return EvaluatedModel(name=spec.model.path.rsplit("/", 1)[-1][:253], adapter_path=spec.model.path), ()
    if spec.model.auto:
        assert spec.base_model is not None
        choice = choose(models, spec.base_model)
        why = (shorten(f"spec.model.auto: the AutoPipeline picks {choice.why}"),)
        if choice.version is None or choice.model is None:
            return EvaluatedModel(name="base"), why
        return _pinned(spec, choice.model, choice.version), why
    name = str(spec.model.name)
    model = next((body for body in models if body["metadata"]["name"] == name), None)
    if model is None:
        raise CannotPlanError(note("ModelNotFound", model=name))
    version = version_to_measure(status_of(model))
    if version is None:
        raise CannotPlanError(note("ModelWithoutVersion", model=name))
    return _pinned(spec, name, version), ()


def _pinned(spec: EvalRunSpec, name: str, version: ModelVersion) -> EvaluatedModel:
    if version.claim_name != spec.workspace.claim_name:
        raise CannotPlanError(note("ModelElsewhere", digest=version.digest[:12], model=name, claim=version.claim_name))
    return EvaluatedModel(name=name, adapter_path=version.path, adapter_digest=version.digest)
