"""The Lease by itself: a leader that has no time for anything else still keeps it, and one that lost it stops at once."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from kubernetes.aio import client, config
from mark_operator import lease
from mark_operator.cluster import Body, Cluster
from mark_operator.lease import Lease, LeaseLostError
from mark_operator.settings import Settings

Change = Callable[[Body], Body]


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


class Watched(Cluster):
    """Hears of each of its writes of the Lease: just before one is sent, and while its answer is on the way."""

    before: Callable[[], Awaitable[None]] | None = None
    answer_seconds = 0.0

    async def create(self, body: Body, dry_run: bool = False) -> Body:
        created = await super().create(body, dry_run)
        delay, self.answer_seconds = self.answer_seconds, 0.0
        await asyncio.sleep(delay)
        return created

    async def replace(self, body: Body) -> Body:
        hook, self.before = self.before, None
        if hook is not None:
            await hook()
        return await super().replace(body)


def timed(namespace: str, lease_seconds: int, renew_seconds: int) -> Settings:
    timings = {"leaseSeconds": lease_seconds, "renewSeconds": renew_seconds}
    return Settings.model_validate({"operatorNamespace": namespace, "timings": timings})


def taken(found: Body) -> Body:
    return {**found, "spec": {**found["spec"], "holderIdentity": "rival"}}


def touched(found: Body) -> Body:
    return {**found, "metadata": {**found["metadata"], "labels": {"touched": "by-somebody"}}}


async def rewrite(cluster: Cluster, settings: Settings, change: Change) -> None:
    """Somebody changes the Lease."""
    found = await cluster.get("Lease", settings.operator_namespace, settings.lease_name)
    assert found is not None
    await cluster.replace(change(found))


async def lost(work: Awaitable[None]) -> float:
    """When the work ended because its Lease was lost."""
    try:
        await work
    except ExceptionGroup as group:
        assert group.subgroup(LeaseLostError) is not None, group
        return time.monotonic()
    raise AssertionError("it ended as if nothing had happened")


async def for_ever() -> None:
    await asyncio.Event().wait()


def test_a_leader_ends_at_once_when_another_one_holds_the_lease(api_server: Any, namespace: str) -> None:
    settings = timed(namespace, lease_seconds=30, renew_seconds=1)
    moments: dict[str, float] = {}

    async def story() -> None:
        cluster = await connected(api_server)

        async def work() -> None:
            await rewrite(cluster, settings, taken)
            moments["taken"] = time.monotonic()
            await for_ever()

        try:
            moments["ended"] = await lost(Lease(cluster, lambda: connected(api_server), settings, "one").lead(work))
        finally:
            await cluster.close()

    asyncio.run(asyncio.wait_for(story(), 60))
    assert moments["ended"] - moments["taken"] < 5


@pytest.mark.parametrize(("change", "ends"), [(taken, True), (touched, False)], ids=["taken over", "touched"])
def test_a_renewal_that_conflicts_is_the_end_only_if_another_one_holds_the_lease(
    api_server: Any, namespace: str, change: Change, ends: bool
) -> None:
    settings = timed(namespace, lease_seconds=60, renew_seconds=5)
    moments: dict[str, float] = {}

    async def story() -> None:
        cluster = await connected(api_server)

        async def connect() -> Cluster:
            renewing = await connected(api_server, Watched)
            assert isinstance(renewing, Watched)
            renewing.before = lambda: interfere(renewing)
            return renewing

        async def interfere(renewing: Cluster) -> None:
            await rewrite(renewing, settings, change)
            moments["changed"] = time.monotonic()

        async def work() -> None:
            while "changed" not in moments:
                await asyncio.sleep(0.1)
            await asyncio.sleep(3)

        leading = Lease(cluster, connect, settings, "one").lead(work)
        try:
            if ends:
                moments["ended"] = await lost(leading)
            else:
                await leading
        finally:
            await cluster.close()

    asyncio.run(asyncio.wait_for(story(), 60))
    assert not ends or moments["ended"] - moments["changed"] < 2, "the second look was not put off"


def test_nobody_leads_on_an_answer_that_came_after_another_one_may_have_followed(
    api_server: Any, namespace: str
) -> None:
    settings = timed(namespace, lease_seconds=3, renew_seconds=1)
    moments: dict[str, float] = {}

    async def lead(name: str, cluster: Cluster, seconds: float) -> None:
        async def work() -> None:
            moments[f"{name} began"] = time.monotonic()
            await asyncio.sleep(seconds)
            moments[f"{name} ended"] = time.monotonic()

        try:
            await Lease(cluster, lambda: connected(api_server), settings, name).lead(work)
        finally:
            await cluster.close()

    async def story() -> None:
        late = await connected(api_server, Watched)
        assert isinstance(late, Watched)
        late.answer_seconds = 9
        async with asyncio.TaskGroup() as group:
            group.create_task(lead("late", late, 0))
            await asyncio.sleep(1)
            group.create_task(lead("rival", await connected(api_server), 8))

    asyncio.run(asyncio.wait_for(story(), 60))
    assert moments["late began"] >= moments["rival ended"]


def test_a_lease_counts_from_the_moment_when_it_was_asked_for(api_server: Any, namespace: str) -> None:
    settings = timed(namespace, lease_seconds=9, renew_seconds=1)
    moments: dict[str, float] = {}

    async def silent() -> Cluster:
        cluster = await connected(api_server, FallsSilent)
        assert isinstance(cluster, FallsSilent)
        cluster.silent = True
        return cluster

    async def story() -> None:
        cluster = await connected(api_server, Watched)
        assert isinstance(cluster, Watched)
        cluster.answer_seconds = 4
        moments["asked"] = time.monotonic()
        try:
            moments["ended"] = await lost(Lease(cluster, silent, settings, "one").lead(for_ever))
        finally:
            await cluster.close()

    asyncio.run(asyncio.wait_for(story(), 60))
    assert moments["ended"] - moments["asked"] < 8
