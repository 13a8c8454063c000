"""What a run that has not started yet will do to the registry."""

from mark_crds.job_input import JobInput
from mark_crds.run import PlannedModel

from mark_operator.registry.versions import spec_of, status_of, version_that_gives_way, with_current
from mark_operator.seen import Body


def forecast(job_input: JobInput, models: tuple[Body, ...]) -> PlannedModel | None:
    """The entry that a success creates, adds a version to, or judges; None when it leaves the registry alone."""
    measured = job_input.evaluated_model
    if measured is not None:
        known = any(model["metadata"]["name"] == measured.name for model in models)
        if measured.adapter_digest is None or not known:
            return None
        return PlannedModel(name=measured.name, action="Judge", version=measured.adapter_digest)
    if job_input.output_model is None or not {"lora", "ppo"} & set(job_input.stages):
        return None
    return _entry(job_input.output_model, models)


def _entry(name: str, models: tuple[Body, ...]) -> PlannedModel:
    model = next((model for model in models if model["metadata"]["name"] == name), None)
    if model is None:
        return PlannedModel(name=name, action="Create")
    status = with_current(status_of(model), spec_of(model).promoted_version)
    gives_way = version_that_gives_way(status)
    return PlannedModel(
        name=name,
        action="AddVersion",
        version=status.current or None,
        drops=gives_way.digest if gives_way else None,
    )
