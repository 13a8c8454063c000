"""The operator with the chart's own service account and settings: its rights are enough for whole runs, and none of them is unused."""

import asyncio
import json
import os
import socket
import ssl
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web
from control_plane import ApiServer, control_plane
from fault_proxy import FaultProxy
from operator_bed import CLAIM, CROWDED
from pretend_kubelet import NEVER, Ending, PretendKubelet, done, make_node
from release import helm, installed
from rest import Rest
from workloads import WORKLOADS, Person, Workload

Right = tuple[str, str, str]
VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
STORIES = ("multi-node", "suspend", "cancel", "evaluate-run")
# Used only when a child of that name is there already.
FOR_TAKEN_NAMES: set[Right] = {("", "services", "get"), ("batch", "jobs", "get")}


class Recorder(FaultProxy):
    """Notes what was asked for, and what was refused for want of rights."""

    def __init__(self, upstream: str, certificate: str) -> None:
        super().__init__(upstream, certificate, _nobody)
        self.asked: set[Right] = set()
        self.refused: list[str] = []

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.update(_right(request))
        answer = await super()._handle(request)
        if answer.status == 403:
            self.refused.append(f"{request.method} {request.path_qs}")
        return answer


async def _nobody() -> None:
    raise AssertionError("no fault was asked for")


def _right(request: web.Request) -> set[Right]:
    """What the request needs; nothing for the discovery of kinds, which everybody may do."""
    _, root, *parts = request.path.split("/")
    group, *parts = parts if root == "apis" and parts else ("", *parts)
    parts = parts[1:]  # the version
    if len(parts) > 2 and parts[0] == "namespaces":
        parts = parts[2:]
    if not parts:
        return set()
    watching = request.query.get("watch") in ("true", "1")
    reading = "watch" if watching else "get" if len(parts) > 1 else "list"
    return {(group, "/".join([parts[0], *parts[2:]]), VERBS.get(request.method, reading))}


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A control plane of its own, with controllers, because Jobs must make Pods here."""
    with control_plane(tmp_path_factory.mktemp("least-rights"), controllers=True) as server:
        yield server


@pytest.fixture(scope="module")
def runs(plane: ApiServer) -> str:
    return plane.fresh_namespace()


@pytest.fixture(scope="module")
def release(plane: ApiServer, runs: str) -> Iterator[str]:
    with installed(plane, "mark-operator", f"watchNamespaces={{{runs}}}") as namespace:
        yield namespace


async def _tell_all(server: ApiServer, release: str, runs: str, folder: Path) -> Recorder:
    """Every story, one after another, to an operator that has no other rights than the chart gives."""
    token = server.must("create", "token", "mark-operator", "-n", release).strip()
    operator = replace(server, tokens={**server.tokens, "admin": token})
    settings = folder / "settings.json"
    own = server.must("get", "configmap", "mark-operator", "-n", release, "-o", "jsonpath={.data.settings\\.json}")
    port = _free_port()
    url = f"https://127.0.0.1:{port}"
    own_ports = {"progressPort": port, "progressUrl": url, "healthPort": 0}
    settings.write_text(json.dumps({**json.loads(own), "timings": CROWDED, **own_ports}))
    async with Rest(server.url, server.tokens["admin"], str(server.certificate)) as rest:
        await make_node(rest)
        await _make_claim(rest, runs)
        async with Recorder(server.url, str(server.certificate)) as recorder:
            environment = {**os.environ, "KUBECONFIG": str(operator.kubeconfig(url=recorder.url))}
            command = [sys.executable, "-m", "mark_operator", "--settings", str(settings)]
            with (folder / "operator.log").open("wb") as log:
                process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=log, stderr=log)
            try:
                for workload in (*(workload for workload in WORKLOADS if workload.name in STORIES), posting(runs, url)):
                    await _tell(rest, runs, workload)
            finally:
                process.terminate()
                await process.wait()
            return recorder


async def _tell(rest: Rest, namespace: str, workload: Workload) -> None:
    kubelet = asyncio.create_task(PretendKubelet(rest, namespace, workload.script).run())
    try:
        person = Person(rest, namespace, workload.kind, workload.name)
        await person.create({**workload.manifest, "metadata": {"name": workload.name}})
        await workload.story(person)
    finally:
        kubelet.cancel()
        await asyncio.gather(kubelet, return_exceptions=True)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def posting(namespace: str, url: str) -> Workload:
    """A story in which a Pod at work posts its progress, and a checkpoint with it."""

    async def story(person: Person) -> None:
        await person.confirm()
        await person.stage_running("lora")
        rest, core = person.rest, f"/api/v1/namespaces/{namespace}"
        pods = (await rest.get(f"{core}/pods?labelSelector=training.mark.dev/run=posting,training.mark.dev/stage=lora"))["items"]
        pod = next(item for item in pods if item["status"]["phase"] == "Running")["metadata"]
        bound = {"apiVersion": "v1", "kind": "Pod", "name": pod["name"], "uid": pod["uid"]}
        spec = {"audiences": [f"training.mark.dev/trainingruns/{namespace}/posting"], "boundObjectRef": bound}
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        token = (await rest.post(f"{core}/serviceaccounts/default/token", request))["status"]["token"]
        authority = (await rest.get(f"{core}/configmaps/posting-t-plan"))["data"]["ca.crt"]
        told = {"step": "5", "loss": "2.5", "checkpointStep": "4", "checkpointAgeSeconds": "1"}
        body = {"trainerStatus": {"metrics": [{"name": name, "value": value} for name, value in told.items()]}}
        async with aiohttp.ClientSession() as session:
            address = f"{url}/v1/namespaces/{namespace}/trainingruns/posting/progress"
            headers = {"Authorization": f"Bearer {token}"}
            trust = ssl.create_default_context(cadata=authority)
            async with session.post(address, json=body, headers=headers, ssl=trust) as answer:
                assert answer.status == 200, await answer.text()
        stored = await rest.get(f"{core}/configmaps/posting-t-metrics")
        assert '"loss"' in stored["data"]["metrics.json"]
        await person.until(lambda run: run["status"].get("lastCheckpoint", {}).get("step") == 4, "told of its checkpoint")
        await person.change(confirm=False)
        await person.in_state("Cancelled")

    def endless(stage: str, attempt: int, turn: int) -> Ending:
        return replace(done(stage), after_seconds=NEVER) if stage == "lora" else done(stage)

    return Workload("posting", story, endless)


async def _make_claim(rest: Rest, namespace: str) -> None:
    """Not bound, so that its storage class is asked for."""
    claims = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"
    spec = {"accessModes": ["ReadWriteMany"], "storageClassName": "slow", "resources": {"requests": {"storage": "1Gi"}}}
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": CLAIM}, "spec": spec}
    await rest.post(claims, claim)


@pytest.fixture(scope="module")
def told(plane: ApiServer, release: str, runs: str, tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    return asyncio.run(_tell_all(plane, release, runs, tmp_path_factory.mktemp("operator")))


def granted(server: ApiServer, release: str) -> set[Right]:
    """Every right in the release's roles for the operator."""
    text = helm(server, "get", "manifest", "mark-operator", "-n", release)
    roles = [item for item in yaml.safe_load_all(text) if item and item["kind"] in ("Role", "ClusterRole")]
    rules: list[dict[str, Any]] = [
        rule for role in roles if role["metadata"]["name"].startswith("mark-operator") for rule in role["rules"]
    ]
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@pytest.mark.slow
def test_rights_are_enough(told: Recorder) -> None:
    assert told.refused == []


@pytest.mark.slow
def test_no_right_is_unused(plane: ApiServer, release: str, told: Recorder) -> None:
    assert granted(plane, release) - told.asked - FOR_TAKEN_NAMES == set()
