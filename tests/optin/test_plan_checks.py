"""Prerequisites that only a cluster can tell, on a real API server with the real operator: each shows in the plan with its cure, and a failed one lets nothing start."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from control_plane import ApiServer
from operator_bed import stage
from rest import Refused, Rest
from workloads import Person, Workload

Body = dict[str, Any]
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
POLICIES = "/apis/admissionregistration.k8s.io/v1"
pytestmark = pytest.mark.slow


async def _nobody(_: Person) -> None:
    """For a story that nobody tells."""


def check(run: Body, name: str) -> Body:
    found: list[Body] = [item for item in run["status"]["plan"]["checks"] if item["name"] == name]
    return found[0] if found else {}


async def fails(person: Person, name: str) -> str:
    """The message of the check once it failed; confirmed all the same, the run starts nothing."""
    run = await person.until(lambda run: check(run, name).get("outcome") == "Failed", f"failed in {name}")
    await person.change(dryRun=False, confirm=True)
    await person.until(
        lambda run: any(item["reason"] == "PrerequisiteFailed" for item in run["status"]["conditions"]), "held"
    )
    assert (await person.rest.get(person.jobs))["items"] == []
    return str(check(run, name)["message"])


def test_a_missing_service_account_shows_and_the_run_starts_once_it_is_there(plane: ApiServer, tmp_path: Path) -> None:
    async def story() -> None:
        bed = Workload("bed", _nobody)
        async with stage(plane, bed, tmp_path / "operator.log", service_account_name="trainers") as (person, _, _, namespace):
            await person.create(bed.manifest)
            await person.planned()
            assert await fails(person, "serviceAccount") == "there is no ServiceAccount trainers in this namespace; create it"
            account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "trainers"}}
            await person.rest.post(f"/api/v1/namespaces/{namespace}/serviceaccounts", account)
            await person.in_state("Succeeded")

    asyncio.run(story())


def test_a_pod_that_pod_security_would_refuse_shows_in_the_plan(plane: ApiServer, tmp_path: Path) -> None:
    """Our Pods keep to `restricted`; what breaks it in practice is a sidecar or a setting that admission adds."""

    async def story() -> None:
        bed = Workload("bed", _nobody)
        async with stage(plane, bed, tmp_path / "operator.log") as (person, _, _, namespace):
            await person.rest.patch(f"/api/v1/namespaces/{namespace}", {"metadata": {"labels": RESTRICTED}})
            await _inject_host_network(person.rest, namespace)
            await person.create(bed.manifest)
            await person.planned()
            for role in ("preflight", "lora"):
                message = await fails(person, f"pod.{role}")
                assert 'violates PodSecurity "restricted' in message and "hostNetwork=true" in message
            run = await person.see()
            assert check(run, "job.lora")["outcome"] == "Passed", "no dry run of a Job sees what befalls its Pods"
            await person.rest.delete(f"{POLICIES}/mutatingadmissionpolicybindings/{namespace}")
            await person.in_state("Succeeded")

    asyncio.run(story())


async def _inject_host_network(rest: Rest, namespace: str) -> None:
    """An admission policy of this namespace that puts every Pod on the host's network; waits until it acts."""
    patch = '[JSONPatch{op: "add", path: "/spec/hostNetwork", value: true}]'
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}
    policy = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": namespace},
        "spec": {
            "reinvocationPolicy": "Never",
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [rule]},
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": patch}}],
        },
    }
    binding = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingAdmissionPolicyBinding",
        "metadata": {"name": namespace},
        "spec": {
            "policyName": namespace,
            "matchResources": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}},
        },
    }
    await rest.post(f"{POLICIES}/mutatingadmissionpolicies", policy)
    await rest.post(f"{POLICIES}/mutatingadmissionpolicybindings", binding)
    probe = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe"}, "spec": {"containers": [{"name": "c", "image": "c"}]}}
    for _ in range(200):
        try:
            await rest.post(f"/api/v1/namespaces/{namespace}/pods?dryRun=All", probe)
        except Refused as refused:
            if "hostNetwork" in str(refused):
                return
        await asyncio.sleep(0.1)
    raise AssertionError(f"the policy never acted on {json.dumps(probe)}")
