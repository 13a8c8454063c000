"""A plan without a cluster: a manifest and the settings, rendered with the operator's own pure code."""

import re
from pathlib import Path
from typing import Any

import yaml
from mark_crds import names
from pydantic import ValidationError

from mark_operator.cli.errors import InputError
from mark_operator.cli.session import Json
from mark_operator.evaluation import plan as evaluation_plan
from mark_operator.planning import needs_models
from mark_operator.run.describe import describe
from mark_operator.run.plan import Rendering, Work, render
from mark_operator.seen import RunKey
from mark_operator.settings import Settings, read_settings_file
from mark_operator.training import plan as training_plan

KINDS = ("TrainingRun", "EvalRun")
# What a plan says of the cluster: its checks, its registry, and who saw it when.
ONLINE_FIELDS = ("checks", "model", "seen", "plannedAt", "summary")


class _Decimal(float):
    """A bare decimal number of a manifest, with the spelling that a person gave it."""

    spelling: str


class _Loader(yaml.SafeLoader):
    """Reads numbers as kubectl does: `2e-4` is one. Alone, the YAML library would take it for text."""


def _decimal(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    number = _Decimal(loader.construct_yaml_float(node))
    number.spelling = node.value
    return number


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+)$"),
    list("-+0123456789."),
)
_Loader.add_constructor("tag:yaml.org,2002:float", _decimal)


def read_runs(path: Path) -> list[Json]:
    """The TrainingRuns and EvalRuns of a manifest file; other objects in it are passed over."""
    try:
        documents = [document for document in yaml.load_all(path.read_text(), _Loader) if document]
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is no YAML: {error}") from error
    runs = [d for d in documents if isinstance(d, dict) and d.get("kind") in KINDS]
    if not runs:
        raise InputError(f"{path}: holds no TrainingRun and no EvalRun", f"apiVersion: {names.API_VERSION}")
    for run in runs:
        _require_envelope(path, run)
    return runs


def _require_envelope(path: Path, run: Json) -> None:
    if run.get("apiVersion") != names.API_VERSION:
        raise InputError(f"{path}: apiVersion: is {run.get('apiVersion')!r}", f"write apiVersion: {names.API_VERSION}")
    if not isinstance(run.get("metadata"), dict) or not isinstance(run["metadata"].get("name"), str):
        raise InputError(
            f"{path}: metadata.name: is missing", "a plan's hash contains the name, so generateName will not do"
        )
    if not isinstance(run.get("spec"), dict):
        raise InputError(f"{path}: spec: is missing")


def read_settings_of(path: Path | None) -> Settings:
    """The settings of a file that `mark settings` printed; without a file, the defaults."""
    if path is None:
        return Settings()
    try:
        return Settings.model_validate(read_settings_file(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, yaml.YAMLError) as error:
        reason = "\n".join(spec_mistakes(error)) if isinstance(error, ValidationError) else str(error)
        raise InputError(f"{path}: these are no settings of this operator", reason) from error


def plan_offline(path: Path, run: Json, namespace: str, settings: Settings) -> Json:
    """The run with the defaults filled in and the status that its plan would have."""
    return planned_run(render_offline(path, run, namespace, settings))


def render_offline(path: Path, run: Json, namespace: str, settings: Settings) -> Rendering:
    """The plan of a manifest's run, rendered with the operator's own code."""
    key = RunKey(run["kind"], namespace, run["metadata"]["name"])
    try:
        return render(_resolve(path, key, run["spec"], settings))
    except ValidationError as error:
        raise InputError(
            f"{path}: {run['kind']} {key.name} is wrong", "\n".join(spec_mistakes(error, "spec."))
        ) from error


def planned_run(rendering: Rendering) -> Json:
    """The rendered run as an object of the API server, with what a plan says without a cluster."""
    key = rendering.means.key
    return {
        "apiVersion": names.API_VERSION,
        "kind": key.kind,
        "metadata": {"name": key.name, "namespace": key.namespace},
        "spec": rendering.means.spec.to_dict(),
        "status": {"plan": _plan(rendering)},
    }


def namespace_of(run: Json, chosen: str | None) -> str:
    """The namespace of the manifest, else the chosen one, else `default`: no kubeconfig is read without a cluster."""
    return str(run["metadata"].get("namespace") or chosen or "default")


def _resolve(path: Path, key: RunKey, spec: Json, settings: Settings) -> Work:
    if key.kind == "TrainingRun":
        return training_plan.resolve(key, spec, settings)
    if needs_models(key.kind, spec):
        raise InputError(
            f"{path}: the plan of the EvalRun {key.name} depends on the registry, which cannot be seen offline",
            "apply it and read its plan in the cluster, or name the adapter's folder with spec.model.path",
        )
    return evaluation_plan.resolve(key, spec, settings, ())


def _plan(rendering: Rendering) -> Json:
    """The plan as the operator would write it, without what only a cluster tells."""
    plan = describe(rendering, ()).to_dict()
    return {field: value for field, value in plan.items() if field not in ONLINE_FIELDS}


def spec_mistakes(error: ValidationError, prefix: str = "") -> list[str]:
    """Each mistake with its field and its cure."""
    return [_mistake(dict(detail), prefix) for detail in error.errors()]


def _mistake(detail: dict[str, Any], prefix: str) -> str:
    field = prefix + ".".join(str(part) for part in detail["loc"])
    value = detail.get("input")
    match detail["type"]:
        case "extra_forbidden":
            return f"{field}: there is no such field; crds/REFERENCE.md lists all of them"
        case "missing":
            return f"{field}: is missing"
        case "string_type" if isinstance(value, int | float) and not isinstance(value, bool):
            spelling = value.spelling if isinstance(value, _Decimal) else str(value)
            short = field.rsplit(".", 1)[-1]
            return f'{field}: is the bare number {spelling}; write it in quotes, as text: {short}: "{spelling}"'
        case "value_error":
            return str(detail["msg"]).removeprefix("Value error, ")
        case _:
            return f"{field}: {detail['msg'][0].lower()}{detail['msg'][1:]}, but is {value!r}"
