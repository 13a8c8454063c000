"""Writes the chart's values.schema.json from the typed settings and the typed values below.

It must hold no setting of its own.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from mark_crds.model import Model
from mark_crds.shared import Name, NodeSelector, ObjectName, Quantity, Toleration
from pydantic import Field, create_model

from mark_operator.settings import Image, Settings

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = ROOT / "helm" / "mark-operator" / "values.schema.json"

# Settings that the chart fills from its other values or from the names of its own objects.
FILLED_BY_CHART = (
    "operator_namespace",
    "watch_namespaces",
    "trainer_image",
    "trainer_image_pull_policy",
    "dry_run_pods",
    "lease_name",
    "progress_url",
    "progress_port",
    "health_port",
    "authority_secret_name",
)

ChosenSettings: type[Model] = create_model(
    "ChosenSettings",
    __base__=Model,
    __doc__="What the operator is told beyond what the chart knows itself.",
    **{name: (field.annotation, field) for name, field in Settings.model_fields.items() if name not in FILLED_BY_CHART},
)  # type: ignore[call-overload]

Text = Annotated[str, Field(max_length=253)]
Texts = dict[Text, Text]


class Images(Model):
    """Images, as full references."""

    operator: Image
    """Image of the operator."""
    trainer: Image
    """Image of the trainer, for runs that name none."""
    pull_policy: Literal["IfNotPresent", "Always", "Never"]
    """Pull policy of both."""
    pull_secrets: list[ObjectName]
    """Secrets of the release's namespace, for the operator's image."""


class PlanRights(Model):
    """What planning may do."""

    dry_run_pods: bool
    """Whether a Pod of each kind is tried with a server-side dry run."""


class Switch(Model):
    """Something that is on or off."""

    enabled: bool
    """Whether it is on."""


class UserRoles(Model):
    """The ClusterRoles for people."""

    create: bool
    """Whether they are installed."""
    aggregate: bool
    """Whether they join the cluster's roles view, edit and admin."""


class CustomResourceDefinitions(Model):
    """The kinds of this API group."""

    enabled: bool
    """Whether the chart installs and upgrades them."""
    keep: bool
    """Whether they stay when the release is uninstalled."""


class Rights(Model):
    """The operator's own rights."""

    create: bool
    """Whether the chart makes and binds its roles."""


class ServiceAccount(Model):
    """The operator's service account."""

    create: bool
    """Whether the chart makes it."""
    name: Annotated[str, Field(pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$", max_length=253)]
    """Its name; empty is the release's."""
    annotations: Texts
    """Its annotations."""


class ApiServerAddress(Model):
    """Where the API server is, for the network policy."""

    cidrs: Annotated[list[Text], Field(min_length=1)]
    """Address ranges."""
    ports: Annotated[list[Annotated[int, Field(ge=1, le=65535)]], Field(min_length=1)]
    """TCP ports."""


class NetworkPolicy(Model):
    """The operator's network policy."""

    enabled: bool
    """Whether all other traffic is refused."""
    api_server: ApiServerAddress
    """Where the API server is."""
    metrics_from: list[dict[Literal["podSelector", "namespaceSelector", "ipBlock"], dict[str, Any]]]
    """NetworkPolicy peers that may read metrics."""


class ComputeResources(Model):
    """Requests and limits of the operator's container."""

    requests: dict[Text, Quantity] = Field(default_factory=dict)
    """What is reserved."""
    limits: dict[Text, Quantity] = Field(default_factory=dict)
    """What is the most."""


class ChartValues(Model):
    """Values of the chart mark-operator."""

    global_: dict[str, Any] = Field(default_factory=dict, alias="global")
    """Not used; Helm sets it when the chart is part of another one."""
    image: Images
    """Images."""
    replicas: Annotated[int, Field(ge=0, le=10)]
    """Replicas of the operator."""
    watch_namespaces: Annotated[list[Name], Field(max_length=200)]
    """Namespaces whose runs are served; empty is all."""
    plan: PlanRights
    """What planning may do."""
    settings: ChosenSettings
    """What the operator is told."""
    confirm_policy: Switch
    """Whether confirming needs the verb `confirm`."""
    user_roles: UserRoles
    """Roles for people."""
    crds: CustomResourceDefinitions
    """The kinds."""
    rbac: Rights
    """The operator's rights."""
    service_account: ServiceAccount
    """The operator's service account."""
    network_policy: NetworkPolicy
    """The operator's network policy."""
    pod_disruption_budget: Switch
    """Whether drains take one replica at a time."""
    resources: ComputeResources
    """Requests and limits of the operator."""
    priority_class_name: Annotated[str, Field(max_length=253)]
    """PriorityClass of the operator's Pods; empty is none."""
    node_selector: NodeSelector
    """Labels that the operator's node must have."""
    tolerations: list[Toleration]
    """Taints that the operator tolerates."""
    pod_labels: Texts
    """Further labels of the operator's Pods."""
    pod_annotations: Texts
    """Further annotations of the operator's Pods."""


def values_schema() -> str:
    """The JSON Schema of the chart's values; an unknown value is refused at every level."""
    schema = ChartValues.model_json_schema(by_alias=True)
    return json.dumps({"$schema": "http://json-schema.org/draft-07/schema#", **schema}, indent=2) + "\n"


def main() -> int:
    """Write the file, or with --check say whether it is stale; the exit status is 1 when it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the file is stale")
    check = parser.parse_args().check
    if SCHEMA.exists() and SCHEMA.read_text() == values_schema():
        return 0
    print(f"{'stale' if check else 'wrote'}: {SCHEMA.relative_to(ROOT)}{' (run make generate)' if check else ''}")
    if not check:
        SCHEMA.write_text(values_schema())
    return 1 if check else 0


if __name__ == "__main__":
    sys.exit(main())
