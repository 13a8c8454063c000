"""The AutoPipeline: which model answers, the tuned one or its base, and why."""

from dataclasses import dataclass

from mark_crds.registered_model import ModelVersion
from mark_crds.shared import BaseModelReference

from mark_operator.registry.versions import spec_of, status_of
from mark_operator.seen import Body


@dataclass(frozen=True)
class Choice:
    """What the AutoPipeline picked. Without a version, the base model answers alone."""

    model: str | None
    version: ModelVersion | None
    why: str


def choose(models: tuple[Body, ...], base: BaseModelReference) -> Choice:
    """The newest current version of a Model that is preferred over this base; else the base, with the reason."""
    name = base.path or str(base.hugging_face_id)
    candidates = []
    refused = []
    for model in sorted(models, key=lambda body: str(body["metadata"]["name"])):
        version, objection = _candidate(model, name)
        if version is None:
            refused.append(f"{model['metadata']['name']}: {objection}")
        else:
            candidates.append((version.created, str(model["metadata"]["name"]), version))
    if candidates:
        _, model_name, newest = max(candidates, key=lambda found: found[:2])
        return Choice(
            model_name,
            newest,
            f"Model {model_name} is preferred over its base, and version {newest.digest[:12]} is current",
        )
    return Choice(None, None, f"the base model {name}: {'; '.join(refused) or 'the namespace has no Model'}")


def _candidate(model: Body, base: str) -> tuple[ModelVersion | None, str]:
    spec, status = spec_of(model), status_of(model)
    if not spec.prefer_rag_finetuned:
        return None, "preferRagFinetuned is false"
    current = next((version for version in status.versions if version.digest == status.current), None)
    if current is None:
        return None, "no version is promoted, and none has passed an evaluation"
    if current.base != base:
        return None, f"its base is {current.base}"
    return current, ""
