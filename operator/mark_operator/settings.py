"""What the cluster's administrator may set:
one typed source for the environment, the settings file and the chart's schema."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from mark_crds.model import Model
from mark_crds.shared import Name, ObjectName
from pydantic import Field, StringConstraints, model_validator

NAMESPACE_VARIABLE = "POD_NAMESPACE"
VARIABLE_PREFIX = "MARK_"

Image = Annotated[str, StringConstraints(min_length=1, max_length=500)]
Url = Annotated[str, StringConstraints(pattern=r"^https://[A-Za-z0-9.-]+(:[0-9]+)?$", max_length=300)]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[int, Field(ge=1, le=86400)]


class Timings(Model):
    """How long the operator waits for what, in seconds."""

    lease_seconds: Seconds = 9
    """A leader that has not renewed its Lease for so long is replaced; at least twice `renewSeconds`."""
    renew_seconds: Seconds = 2
    """Time between two renewals of the Lease. A standby acts `leaseSeconds` and at most twice this after a leader's
    death."""
    relist_seconds: Seconds = 420
    """Time between two complete lists of all runs, which repair missed events."""
    check_seconds: Seconds = 60
    """Time between two looks at a plan whose checks failed, or at a run that waits."""
    active_seconds: Seconds = 120
    """Time between two looks at a run whose Job works, in case an event was missed."""
    no_progress_seconds: Seconds = 1800
    """A trainer that told its progress and then falls silent for so long is reported as hung."""
    first_retry_seconds: Seconds = 10
    """Pause before the second attempt of a stage; it doubles with each further one."""
    longest_retry_seconds: Seconds = 600
    """Longest pause between two attempts of a stage."""
    progress_seconds: Seconds = 15
    """Shortest time between two writes of a run's progress."""

    @model_validator(mode="after")
    def _leave_time_to_renew(self) -> Self:
        """A leader acts for two thirds of its Lease without renewing it, and must have time to do so within them."""
        if self.lease_seconds < 2 * self.renew_seconds:
            raise ValueError("leaseSeconds must be at least twice renewSeconds; raise it, or lower renewSeconds")
        return self


class Settings(Model):
    """The administrator's settings. A field that reaches a Job changes the plan hash of every run that has not
    started."""

    operator_namespace: ObjectName = "mark-system"
    """Namespace of the operator itself: its Lease, and the Secret with its certificate authority."""
    watch_namespaces: Annotated[tuple[ObjectName, ...], Field(max_length=200)] = ()
    """Namespaces whose runs are looked at; empty means all."""
    trainer_image: Image = "localhost/mark-trainer:0.1.0"
    """Trainer image of a run that names none."""
    trainer_images: Annotated[tuple[Image, ...], Field(max_length=100)] = ()
    """Images that a run may name besides `trainerImage`; an entry that ends in `*` allows all that begin so."""
    trainer_image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    """Pull policy of the trainer image."""
    trainer_image_pull_secrets: Annotated[tuple[ObjectName, ...], Field(max_length=8)] = ()
    """Names of pull Secrets, looked up by the kubelet in the run's own namespace."""
    approval: Literal["Seen", "PlanHash", "Field"] = "Seen"
    """What counts as a confirmation: `confirm` for a plan that stood in the status before, the plan's hash only, or
    `confirm` alone."""
    frozen: bool = False
    """true lets no further run start; running ones go on."""
    plan_expiry_seconds: Annotated[int, Field(ge=0, le=31536000)] = 0
    """A plan older than this cannot be confirmed; 0 means that plans do not age."""
    dry_run_pods: bool = True
    """Whether a plan asks the API server to dry-run a Pod of each role; needs the right to create Pods."""
    require_gpu_nodes: bool = True
    """Whether a plan fails when no node offers the GPU resource; set false where nodes are added on demand."""
    service_account_name: ObjectName = "default"
    """Service account of the Jobs' Pods, in the run's namespace. Its token is not mounted."""
    run_as_user: Annotated[int, Field(ge=1, le=2147483647)] = 1000
    """User id, group id and fsGroup of the Jobs' Pods."""
    runtime_class_name: ObjectName | None = None
    """RuntimeClass of the Jobs' Pods."""
    lease_name: Name = "mark-operator"
    """Name of the Lease that elects the leader among replicas."""
    progress_url: Url | None = None
    """Address of the progress server as Pods reach it, such as `https://mark-operator.mark-system.svc:8443`;
    absent turns progress off."""
    progress_port: Port = 8443
    """TCP port of the progress server; 0 takes a free one."""
    health_port: Port = 8080
    """TCP port of /healthz, /readyz and /metrics; 0 takes a free one."""
    authority_secret_name: ObjectName = "mark-operator-authority"
    """Secret in the operator's namespace that keeps the certificate authority of the progress server."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least severe log line that is written."""
    timings: Timings = Timings()
    """How long the operator waits for what."""


def load_settings(environment: Mapping[str, str], path: Path | None = None) -> Settings:
    """The settings of a file, overridden by variables such as MARK_TRAINER_IMAGE;
    POD_NAMESPACE names the operator's namespace."""
    values = read_settings_file(path) if path else {}
    if NAMESPACE_VARIABLE in environment:
        values["operatorNamespace"] = environment[NAMESPACE_VARIABLE]
    for name, field in Settings.model_fields.items():
        text = environment.get(VARIABLE_PREFIX + name.upper())
        if text is not None:
            values[str(field.alias)] = _from_text(text)
    return Settings.model_validate(values)


def read_settings_file(path: Path) -> dict[str, Any]:
    """The raw settings of a YAML or JSON file."""
    values = yaml.safe_load(path.read_text()) or {}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: must be a mapping of settings, such as `trainerImage: ...`")
    return values


def _from_text(text: str) -> Any:
    """A variable's value: JSON where it is JSON (true, 60, ["a"]), else the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
