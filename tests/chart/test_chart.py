"""What the chart renders: every switch, strict values, hardened Pods, settings that the operator accepts."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from mark_operator.generate import CHART, FILLED_BY_CHART, INSTALL, install_manifest, values_schema
from mark_operator.settings import Settings

VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
BY_DEFAULT = {
    "ServiceAccount": 1,
    "Secret": 1,
    "ConfigMap": 1,
    "CustomResourceDefinition": 3,
    "ClusterRole": 5,
    "ClusterRoleBinding": 1,
    "Role": 1,
    "RoleBinding": 1,
    "Service": 1,
    "Deployment": 1,
    "PodDisruptionBudget": 1,
}
# Values and what they change in the number of objects.
SWITCHES: dict[str, dict[str, int]] = {
    "replicas=1": {"PodDisruptionBudget": 0},
    "podDisruptionBudget.enabled=false": {"PodDisruptionBudget": 0},
    "crds.enabled=false": {"CustomResourceDefinition": 0},
    "userRoles.create=false": {"ClusterRole": 1},
    "rbac.create=false": {"ClusterRole": 4, "ClusterRoleBinding": 0, "Role": 0, "RoleBinding": 0},
    "serviceAccount.create=false,serviceAccount.name=mine": {"ServiceAccount": 0},
    "watchNamespaces={a,b}": {"Role": 3, "RoleBinding": 3},
    "confirmPolicy.enabled=true": {"ValidatingAdmissionPolicy": 1, "ValidatingAdmissionPolicyBinding": 1},
    "networkPolicy.enabled=true": {"NetworkPolicy": 1},
}


def one(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = [document for document in objects if document["kind"] == kind]
    return found


def counts(objects: list[dict[str, Any]]) -> dict[str, int]:
    kinds = [document["kind"] for document in objects]
    return {kind: kinds.count(kind) for kind in kinds}


def test_objects_by_default(render) -> None:
    assert counts(render()) == BY_DEFAULT


@pytest.mark.parametrize("values", SWITCHES)
def test_switch(render, values: str) -> None:
    expected = {kind: count for kind, count in {**BY_DEFAULT, **SWITCHES[values]}.items() if count}
    assert counts(render(values)) == expected


def test_names_never_clash(render) -> None:
    objects = render("confirmPolicy.enabled=true", "networkPolicy.enabled=true", "watchNamespaces={a,b}")
    names = [(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in objects]
    assert len(names) == len(set(names))
    assert not any("generateName" in o["metadata"] for o in objects)


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ("nosuch=1", "'"),
        ("settings.approva=Seen", "/settings"),
        ("settings.approval=Sometimes", "/settings/approval"),
        ("settings.operatorNamespace=other", "/settings"),
        ("settings.timings.leaseSecond=3", "/settings/timings"),
        ("image.pullPolicy=Sometimes", "/image/pullPolicy"),
        ("image.tag=1", "/image"),
        ("replicas=-1", "/replicas"),
        ("replicas=two", "/replicas"),
        ("watchNamespaces=a", "/watchNamespaces"),
        ("watchNamespaces={A}", "/watchNamespaces/0"),
        ("confirmPolicy.enable=true", "/confirmPolicy"),
        ("resources.limits.memory=plenty", "/resources/limits/memory"),
        ("networkPolicy.metricsFrom[0].namespace=monitoring", "/networkPolicy/metricsFrom"),
        ("networkPolicy.apiServer.ports={0}", "/networkPolicy/apiServer/ports/0"),
    ],
)
def test_wrong_value_is_refused(template, values: str, where: str) -> None:
    done = template(values)
    assert done.returncode != 0
    assert f"at '{where}" in done.stderr


def test_schema_is_fresh() -> None:
    assert (CHART / "values.schema.json").read_text() == values_schema(), "run make generate"


def test_install_manifest_is_fresh(helm) -> None:
    assert INSTALL.read_text() == install_manifest(helm), "run make generate"


def test_every_value_is_listed_with_a_comment() -> None:
    """values.yaml is the chart's reference: each value that the schema knows stands in it."""
    schema = json.loads(values_schema())
    properties = {name for name in schema["properties"] if name != "global"}
    assert set(VALUES) == properties
    text = (CHART / "values.yaml").read_text()
    for name in schema["$defs"]["ChosenSettings"]["properties"]:
        assert f"{name}: " in text, f"settings.{name}"


def test_values_as_part_of_another_chart(template) -> None:
    assert template("global.anything=1").returncode == 0


def test_operator_accepts_its_settings(render) -> None:
    objects = render(
        "watchNamespaces={a,b}",
        "plan.dryRunPods=false",
        "settings.approval=PlanHash",
        "settings.timings.relistSeconds=60",
    )
    settings = Settings.model_validate(json.loads(one(objects, "ConfigMap")["data"]["settings.json"]))
    assert settings.operator_namespace == "mark-system"
    assert settings.watch_namespaces == ("a", "b")
    assert settings.approval == "PlanHash"
    assert settings.timings.relist_seconds == 60
    assert not settings.dry_run_pods
    service = one(objects, "Service")["metadata"]["name"]
    assert settings.progress_url == f"https://{service}.mark-system.svc:{settings.progress_port}"
    names = {o["metadata"]["name"] for o in objects if o["kind"] == "Secret"}
    assert names == {settings.authority_secret_name}


def test_defaults_are_the_operators_own(render) -> None:
    settings = Settings.model_validate(json.loads(one(render(), "ConfigMap")["data"]["settings.json"]))
    own = Settings()
    for name in Settings.model_fields:
        if name not in FILLED_BY_CHART:
            assert getattr(settings, name) == getattr(own, name), name


def test_ports_are_those_of_the_settings(render) -> None:
    objects = render()
    settings = Settings.model_validate(json.loads(one(objects, "ConfigMap")["data"]["settings.json"]))
    (container,) = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"metrics": settings.health_port, "progress": settings.progress_port}
    assert {p["port"] for p in one(objects, "Service")["spec"]["ports"]} == set(ports.values())


def test_changed_settings_start_new_pods(render) -> None:
    def checksum(*values: str) -> str:
        return one(render(*values), "Deployment")["spec"]["template"]["metadata"]["annotations"]["checksum/settings"]

    assert checksum() == checksum("resources.limits.memory=1Gi")
    assert len({checksum(), checksum("settings.approval=Field"), checksum("image.trainer=other")}) == 3


def test_pods_are_restricted(render) -> None:
    template = one(render(), "Deployment")["spec"]["template"]["spec"]
    assert template["securityContext"]["runAsNonRoot"] is True
    assert template["securityContext"]["runAsUser"] == 1000
    assert template["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = template["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"] == "512Mi"
    assert {volume["name"] for volume in template["volumes"]} == {"settings", "tmp"}


def test_network_policy_selects_the_operator(render) -> None:
    objects = render("networkPolicy.enabled=true")
    labels = one(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    policy = one(objects, "NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert policy["policyTypes"] == ["Ingress", "Egress"]


def test_custom_resource_definitions_are_the_contracts(render) -> None:
    for crd in _crds(render()):
        assert crd["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
        assert crd == yaml.safe_load((CHART.parents[1] / "crds" / f"{crd['spec']['names']['plural']}.yaml").read_text())


def test_custom_resource_definitions_can_go_with_the_release(render) -> None:
    for crd in _crds(render("crds.keep=false")):
        assert "annotations" not in crd["metadata"]


def _crds(objects: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    found = [o for o in objects if o["kind"] == "CustomResourceDefinition"]
    assert len(found) == 3
    yield from found


def test_chart_declares_nothing_that_the_operator_writes(render) -> None:
    objects = render()
    assert not any(key in one(objects, "Secret") for key in ("data", "stringData"))
    assert not any("status" in o for o in objects)


def test_pod_dry_run_is_a_right_of_its_own(render) -> None:
    def pod_verbs(*values: str) -> list[str]:
        rules = [
            r
            for o in render(*values)
            if o["metadata"]["name"] == "mark-operator" and o["kind"] == "ClusterRole"
            for r in o["rules"]
        ]
        return next(r["verbs"] for r in rules if "pods" in r["resources"])

    assert "create" in pod_verbs()
    assert "create" not in pod_verbs("plan.dryRunPods=false")


def test_roles_for_people_join_the_clusters_own(render) -> None:
    def joined(*values: str) -> dict[str, list[str]]:
        roles = [o["metadata"] for o in render(*values) if o["kind"] == "ClusterRole"]
        prefix = "rbac.authorization.k8s.io/aggregate-to-"
        found = {
            role["name"]: [key.removeprefix(prefix) for key in role["labels"] if key.startswith(prefix)]
            for role in roles
        }
        return {name: into for name, into in found.items() if into}

    assert joined() == {"mark-viewer": ["view"], "mark-author": ["edit"], "mark-admin": ["admin"]}
    assert joined("userRoles.aggregate=false") == {}


def test_release_name_is_part_of_every_name(render) -> None:
    objects = render(release="research")
    for document in objects:
        name = document["metadata"]["name"]
        if document["kind"] != "CustomResourceDefinition" and not name.startswith("mark-"):
            assert name.startswith("research-mark-operator")
