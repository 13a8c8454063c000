"""Watching as a whole: what dies beside kopf ends all, and runs are counted as they are listed."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from kubernetes.aio import client, config
from mark_operator import watch as watching
from mark_operator.__main__ import serve
from mark_operator.cluster import Cluster
from mark_operator.handlers import Attention
from mark_operator.health import Health
from mark_operator.reconcile import Reconciler
from mark_operator.seen import RunKey
from mark_operator.settings import Settings
from mark_operator.watch import list_runs, watch
from prometheus_client import generate_latest


class BrokenError(Exception):
    """A fault of ours that nobody expected."""


class BrokenQueue(watching.Queue[RunKey]):
    async def run(self) -> None:
        await asyncio.sleep(1)
        raise BrokenError


class BrokenLists(Health):
    lists = 0

    def count_runs(self, states: Any) -> None:
        self.lists += 1
        if self.lists == 2:
            raise BrokenError
        super().count_runs(states)


@pytest.fixture
def bench(make_bench: Any, api_server: Any, namespace: str) -> Any:
    return make_bench(api_server, namespace)


async def connected(api_server: Any) -> Cluster:
    configuration = client.Configuration()
    await config.load_kube_config(str(api_server.kubeconfig()), client_configuration=configuration)
    return Cluster(configuration)


def scope(namespace: str, **more: Any) -> Settings:
    ports = {"healthPort": 0, "progressPort": 0}
    return Settings.model_validate({"operatorNamespace": namespace, "watchNamespaces": [namespace], **ports, **more})


def seconds_until_broken(work: Callable[[], Awaitable[Any]]) -> float:
    started = time.monotonic()
    with pytest.raises(ExceptionGroup) as raised:
        asyncio.run(asyncio.wait_for(work(), 40))
    assert raised.value.subgroup(BrokenError) is not None
    return time.monotonic() - started


@pytest.mark.parametrize("part", ["queue", "lists"])
def test_what_dies_beside_kopf_ends_all(
    api_server: Any, namespace: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(api_server.kubeconfig()))
    if part == "queue":
        monkeypatch.setattr(watching, "Queue", BrokenQueue)
    settings = scope(namespace, timings={"relistSeconds": 1})
    health = BrokenLists(60) if part == "lists" else Health(60)

    async def story() -> None:
        cluster = await connected(api_server)
        try:
            reconciler = Reconciler(cluster, settings, lambda: datetime.now(UTC), None, health)
            await watch(cluster, settings, reconciler, health, lambda: None)
        finally:
            await cluster.close()

    assert seconds_until_broken(story) < 20


def test_an_operator_whose_clock_dies_ends_to_be_started_afresh(
    api_server: Any, namespace: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def tick(_: Health) -> None:
        await asyncio.sleep(1)
        raise BrokenError

    monkeypatch.setenv("KUBECONFIG", str(api_server.kubeconfig()))
    monkeypatch.setattr(Health, "tick", tick)
    monkeypatch.setattr(Cluster, "connect", lambda answered: connected(api_server))
    assert asyncio.run(asyncio.wait_for(serve(scope(namespace)), 40)) == 1
    assert "BrokenError" in caplog.text


def test_a_list_counts_runs_and_queues_models_too(api_server: Any, namespace: str, bench: Any) -> None:
    bench.run()
    head = {"apiVersion": "training.mark.dev/v1alpha1", "kind": "Model"}
    bench.apply({**head, "metadata": {"name": "tuned"}, "spec": {"family": "transformer"}})
    health, asked = Health(60), []

    async def story() -> None:
        cluster = await connected(api_server)
        try:
            await list_runs(cluster, scope(namespace), Attention(asked.append, lambda key, body: False), health)
        finally:
            await cluster.close()

    asyncio.run(story())
    text = generate_latest(health.registry).decode()
    assert re.findall(r"^mark_operator_runs(\{.*) ", text, re.MULTILINE) == ['{kind="TrainingRun",state=""}']
    assert sorted(key.kind for key in asked) == ["Model", "TrainingRun"]
