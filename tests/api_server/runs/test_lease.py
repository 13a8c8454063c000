"""The Lease by itself: a leader that has no time for anything else still keeps it."""

import asyncio
import threading
import time
from typing import Any

import pytest
from kubernetes.aio import client, config
from mark_operator import lease
from mark_operator.cluster import Cluster
from mark_operator.lease import Lease
from mark_operator.settings import Settings


async def connected(api_server: Any, kind: type[Cluster] = Cluster) -> Cluster:
    configuration = client.Configuration()
    await config.load_kube_config(str(api_server.kubeconfig()), client_configuration=configuration)
    return kind(configuration)


def test_a_leader_whose_loop_is_busy_keeps_its_lease(api_server: Any, namespace: str) -> None:
    settings = Settings.model_validate(
        {"operatorNamespace": namespace, "timings": {"leaseSeconds": 3, "renewSeconds": 1}}
    )
    moments: dict[str, float] = {}
    leads = threading.Event()

    async def connect() -> Cluster:
        return await connected(api_server)

    async def lead(name: str, work: Any) -> None:
        cluster = await connect()
        try:
            await Lease(cluster, connect, settings, name).lead(work)
        finally:
            await cluster.close()

    async def busy() -> None:
        leads.set()
        time.sleep(7)  # Nothing else turns in this loop meanwhile.
        moments["ended"] = time.monotonic()

    async def successor() -> None:
        moments["taken over"] = time.monotonic()

    leader = threading.Thread(target=lambda: asyncio.run(lead("busy", busy)))
    leader.start()
    assert leads.wait(30)
    asyncio.run(asyncio.wait_for(lead("rival", successor), 60))
    leader.join(30)
    assert moments["taken over"] >= moments["ended"]


class FallsSilent(Cluster):
    """Answers nothing more from some moment on."""

    silent = False

    async def get(self, kind: str, namespace: str | None, name: str) -> Any:
        if self.silent:
            await asyncio.Event().wait()
        return await super().get(kind, namespace, name)


def test_a_leader_ends_though_nobody_takes_its_lease_back(
    api_server: Any, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "GIVE_BACK_SECONDS", 0.5)
    settings = Settings.model_validate({"operatorNamespace": namespace})

    async def lead() -> None:
        cluster = await connected(api_server, FallsSilent)
        assert isinstance(cluster, FallsSilent)

        async def work() -> None:
            cluster.silent = True

        try:
            await Lease(cluster, lambda: connected(api_server), settings, "one").lead(work)
        finally:
            await cluster.close()

    asyncio.run(asyncio.wait_for(lead(), 20))
