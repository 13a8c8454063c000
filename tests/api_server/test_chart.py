"""The chart and install.yaml on a real API server: every switch is accepted, upgrades keep what the operator wrote, uninstalling keeps the CRDs."""

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from release import CHART, helm

INSTALL = Path(__file__).resolve().parents[2] / "manifests" / "install.yaml"
SWITCHES = [
    "replicas=2",
    "replicas=1",
    "plan.dryRunPods=false",
    "watchNamespaces={NAMESPACE}",
    "confirmPolicy.enabled=true",
    "confirmPolicy.enabled=true,watchNamespaces={NAMESPACE}",
    "userRoles.aggregate=false",
    "crds.keep=false",
    "networkPolicy.enabled=true",
    "networkPolicy.enabled=true,watchNamespaces={NAMESPACE},networkPolicy.metricsFrom[0].podSelector.matchLabels.app=prometheus",
    "serviceAccount.annotations.note=text",
    "image.pullSecrets={registry},priorityClassName=system-cluster-critical",
    "nodeSelector.pool=system,tolerations[0].operator=Exists,podLabels.team=ml,podAnnotations.note=text",
    "settings.frozen=true,settings.planExpirySeconds=3600,settings.runtimeClassName=nvidia",
]


def rendered(api_server: Any, namespace: str, *values: str) -> list[dict[str, Any]]:
    settings = [word for value in values for word in ("--set", value)]
    text = helm(api_server, "template", "mark-operator", str(CHART), "-n", namespace, *settings)
    return [document for document in yaml.safe_load_all(text) if document]


@pytest.mark.parametrize("values", SWITCHES)
def test_server_accepts(api_server, namespace: str, values: str) -> None:
    objects = rendered(api_server, namespace, values.replace("NAMESPACE", namespace))
    items = {"apiVersion": "v1", "kind": "List", "items": objects}
    api_server.must(
        "apply", "--server-side", "--dry-run=server", "--validate=strict", "--force-conflicts", "-f", "-", stdin=items
    )


def test_server_accepts_install_manifest(api_server) -> None:
    objects = [document for document in yaml.safe_load_all(INSTALL.read_text()) if document]
    api_server.must("apply", "--server-side", "-f", "-", stdin=objects[0])
    assert objects[0]["kind"] == "Namespace"
    api_server.must(
        "apply", "--server-side", "--dry-run=server", "--validate=strict", "--force-conflicts", "-f", str(INSTALL)
    )


def test_operator_passes_pod_security(api_server, namespace: str) -> None:
    api_server.must("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    (deployment,) = [o for o in rendered(api_server, namespace) if o["kind"] == "Deployment"]
    template = deployment["spec"]["template"]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "operator", "namespace": namespace},
        "spec": template["spec"],
    }
    api_server.must("create", "--dry-run=server", "-f", "-", stdin=pod)


@pytest.fixture
def release(api_server) -> Iterator[str]:
    """Namespace of a release with the CRDs, which the tests' API server had before."""
    namespace = f"mark-{secrets.token_hex(4)}"
    helm(api_server, "install", "mark-operator", str(CHART), "-n", namespace, "--create-namespace", "--take-ownership")
    yield namespace
    helm(api_server, "uninstall", "mark-operator", "-n", namespace, "--ignore-not-found", "--timeout=30s")


def test_upgrade_and_rollback_keep_what_the_operator_wrote(api_server, release: str) -> None:
    secret = ["secret", "mark-operator-authority", "-n", release]
    written = json.dumps(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": secret[1]}, "data": {"tls.crt": "eA=="}}
    )
    api_server.must("apply", "--server-side", "--field-manager=mark-operator", "-n", release, "-f", "-", stdin=written)
    helm(api_server, "upgrade", "mark-operator", str(CHART), "-n", release, "--set", "settings.approval=PlanHash")
    assert api_server.must("get", *secret, "-o", "jsonpath={.data}") == '{"tls.crt":"eA=="}'
    settings = api_server.must(
        "get", "configmap", "mark-operator", "-n", release, "-o", "jsonpath={.data.settings\\.json}"
    )
    assert json.loads(settings)["approval"] == "PlanHash"
    helm(api_server, "rollback", "mark-operator", "1", "-n", release)
    assert api_server.must("get", *secret, "-o", "jsonpath={.data}") == '{"tls.crt":"eA=="}'


def test_uninstall_keeps_the_kinds_and_what_was_made_of_them(api_server, namespace: str, release: str) -> None:
    model = {
        "apiVersion": "training.mark.dev/v1alpha1",
        "kind": "Model",
        "metadata": {"name": "kept"},
        "spec": {"family": "mamba"},
    }
    api_server.must("create", "-n", namespace, "-f", "-", stdin=model)
    helm(api_server, "uninstall", "mark-operator", "-n", release, "--timeout=30s")
    assert "kept" in api_server.must("get", "models", "-n", namespace, "-o", "name")
    made = ["deployment,service,configmap,secret,role,rolebinding,serviceaccount,poddisruptionbudget", "-n", release]
    left = api_server.must("get", *made, "-l", "app.kubernetes.io/name=mark-operator", "-o", "name").split()
    assert left == ["secret/mark-operator-authority"], "the Pods of runs that go on trust it and no other"
    helm(api_server, "install", "mark-operator", str(CHART), "-n", release)
