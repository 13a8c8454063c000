"""How much the operator writes: little in a run's life, nothing when nothing happens, nothing when it starts anew."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from audit_log import AuditLog, writes_of
from control_plane import ApiServer
from crowd import Crowd, OperatorUnderTest, beside, make_claim
from paper_jobs import PaperJobs
from rest import Rest

RUNS = 12
SECONDS = 150
# Everything that is looked at from time to time is looked at several times within a test.
RESTLESS = {"relistSeconds": 3, "checkSeconds": 2, "activeSeconds": 2}
CHAINS = (["dataPrep"], ["dataPrep", "lora"], ["dataPrep", "lora", "eval"])


@asynccontextmanager
async def crowd_of(server: ApiServer, rest: Rest, count: int, seconds: float, **spec: Any) -> AsyncIterator[Crowd]:
    """Runs in a namespace of their own, whose Pods work for so long."""
    namespace = await asyncio.to_thread(server.fresh_namespace)
    await make_claim(rest, namespace)
    crowd = Crowd(rest, namespace, count, **spec)
    async with beside(crowd.watch(), PaperJobs(rest, namespace, seconds=seconds).run()):
        yield crowd


async def brought_to(crowd: Crowd, state: str) -> None:
    await crowd.create()
    await crowd.until_all(crowd.in_state["PlanReady"], "planned", SECONDS)
    if state != "PlanReady":
        await crowd.confirm()
        await crowd.until_all(crowd.in_state[state], state, SECONDS)


def admin(server: ApiServer) -> Rest:
    return Rest(server.url, server.tokens["admin"], str(server.certificate))


def told(story: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(story())


@pytest.fixture
def operator(api_server: ApiServer, tmp_path: Path) -> Any:
    """Makes the operator of these namespaces; it ends with the test."""
    made: list[OperatorUnderTest] = []

    def make(*namespaces: str, **timings: int) -> OperatorUnderTest:
        scope = {"operatorNamespace": namespaces[0], "watchNamespaces": namespaces}
        made.append(OperatorUnderTest(api_server, tmp_path, timings=timings, **scope))
        return made[-1]

    yield make
    for process in made:
        process.stop()


def test_a_life_takes_twelve_writes_and_six_for_each_further_stage(api_server: ApiServer, operator: Any) -> None:
    async def story() -> None:
        async with AsyncExitStack() as closing:
            rest = await closing.enter_async_context(admin(api_server))
            beds = [crowd_of(api_server, rest, RUNS, seconds=1, stages=stages) for stages in CHAINS]
            crowds = [await closing.enter_async_context(bed) for bed in beds]
            audit = AuditLog(api_server.audit_log)
            operator(*(crowd.namespace for crowd in crowds)).start()
            await asyncio.gather(*(brought_to(crowd, "Succeeded") for crowd in crowds))
            await asyncio.sleep(1)
            calls = audit.take()
            for number, crowd in enumerate(crowds):
                writes = writes_of(calls, crowd.namespace)
                assert writes["create jobs"] == (number + 2) * RUNS and writes["create configmaps"] == RUNS, writes
                assert writes.total() <= (12 + 6 * number) * RUNS, writes

    told(story)


def test_a_quiet_cluster_is_left_alone_and_so_is_a_cluster_at_a_restart(api_server: ApiServer, operator: Any) -> None:
    async def story() -> None:
        async with (
            admin(api_server) as rest,
            crowd_of(api_server, rest, RUNS, seconds=0.1) as finished,
            crowd_of(api_server, rest, RUNS, seconds=3600) as working,
            crowd_of(api_server, rest, RUNS, seconds=0) as planned,
        ):
            process = operator(finished.namespace, working.namespace, planned.namespace, **RESTLESS)
            process.start()
            await asyncio.gather(
                brought_to(finished, "Succeeded"), brought_to(working, "Running"), brought_to(planned, "PlanReady")
            )
            await asyncio.sleep(2)
            audit = AuditLog(api_server.audit_log)
            await asyncio.sleep(8)
            calls = audit.take()
            assert calls.total() > 0, "it does look"
            assert writes_of(calls) == Counter()
            process.stop()
            process.start()
            await process.until_it_leads()
            await asyncio.sleep(8)
            calls = audit.take()
            assert sum(count for call, count in calls.items() if call.verb == "get") > 2 * RUNS, "it does look"
            assert writes_of(calls) == Counter()

    told(story)
