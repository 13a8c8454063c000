"""The Lease by itself: a leader that has no time for anything else still keeps it."""

import asyncio
import threading
import time
from typing import Any

from kubernetes.aio import client, config
from mark_operator.cluster import Cluster
from mark_operator.lease import Lease
from mark_operator.settings import Settings


def test_a_leader_whose_loop_is_busy_keeps_its_lease(api_server: Any, namespace: str) -> None:
    settings = Settings.model_validate(
        {"operatorNamespace": namespace, "timings": {"leaseSeconds": 3, "renewSeconds": 1}}
    )
    moments: dict[str, float] = {}
    leads = threading.Event()

    async def connect() -> Cluster:
        configuration = client.Configuration()
        await config.load_kube_config(str(api_server.kubeconfig()), client_configuration=configuration)
        return Cluster(configuration)

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
