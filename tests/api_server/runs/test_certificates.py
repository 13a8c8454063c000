"""The certificate authority of the progress server: one for all replicas, whoever is quicker."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from kubernetes.aio import client, config
from mark_operator import certificates
from mark_operator.certificates import Authority, load_authority
from mark_operator.cluster import Body, Cluster
from mark_operator.settings import Settings


class Overtaken(Cluster):
    """Another replica stores its authority just after this one first looked."""

    def __init__(self, configuration: client.Configuration, quicker: Callable[[], Awaitable[Authority]]) -> None:
        super().__init__(configuration)
        self._quicker = quicker
        self.theirs: Authority | None = None

    async def get(self, kind: str, namespace: str | None, name: str) -> Body | None:
        found = await super().get(kind, namespace, name)
        if self.theirs is None:
            self.theirs = await self._quicker()
        return found


@pytest.mark.parametrize("there", [True, False], ids=["an empty Secret", "no Secret"])
def test_a_replica_that_was_overtaken_takes_the_other_ones_authority(
    api_server: Any, namespace: str, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "PAUSE_SECONDS", 0.1)
    settings = Settings.model_validate({"operatorNamespace": namespace})

    async def race() -> tuple[Authority | None, Authority, Authority]:
        configuration = client.Configuration()
        await config.load_kube_config(str(api_server.kubeconfig()), client_configuration=configuration)
        quicker = Cluster(configuration)
        overtaken = Overtaken(configuration, lambda: load_authority(quicker, settings))
        try:
            if there:
                metadata = {"name": settings.authority_secret_name, "namespace": namespace}
                await quicker.create({"apiVersion": "v1", "kind": "Secret", "metadata": metadata})
            mine = await load_authority(overtaken, settings)
            return overtaken.theirs, mine, await load_authority(quicker, settings)
        finally:
            await quicker.close()
            await overtaken.close()

    theirs, mine, stored = asyncio.run(race())
    assert theirs is not None
    assert theirs.pem == mine.pem == stored.pem
