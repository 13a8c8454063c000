"""How fast the operator is, against a bare client that makes the same writes on the same API server: `make bench-operator`.

A real etcd and kube-apiserver; no node: Jobs are brought to their end on paper. All times of one size come from one run
of this program, so their ratios hold on any machine.
"""

import argparse
import asyncio
import json
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from audit_log import AuditLog, Call, writes_of
from control_plane import ApiServer, control_plane
from counted_relay import CountedRelay
from crowd import Crowd, LongestLag, OperatorUnderTest, beside, make_claim
from mark_crds import names
from mark_operator.queue import WORKERS
from mark_operator.run.objects import bind
from mark_operator.run.plan import stored_jobs
from paper_jobs import PaperJobs
from rest import APPLY, MERGE, Rest

Body = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
QUIET_SECONDS = 20
LONGEST_SECONDS = 3000
# Runs of a crowd whose Jobs are brought to their end; on two cores the API server needs an hour for 5,000 whole lives.
ENDED_AT_MOST = 1000
TRAFFIC_RUNS = 50
JSON = "application/json"
CHAINS = {1: ["dataPrep"], 2: ["dataPrep", "lora"], 3: ["dataPrep", "lora", "eval"]}


@dataclass
class Figures:
    """What one size came to; seconds and MB."""

    runs: int
    plan_seconds: float = 0
    start_seconds: float = 0
    bare_seconds: float = 0
    start_p50: float = 0
    start_p99: float = 0
    bare_p50: float = 0
    bare_p99: float = 0
    ended: int = 0
    life_seconds: float = 0
    quiet_writes: int = 0
    quiet_calls_per_second: float = 0
    restart_seconds: float = 0
    restart_writes: int = 0
    restart_calls_per_run: float = 0
    megabytes_started: float = 0
    megabytes_highest: float = 0
    longest_lag_seconds: float = 0
    cpu_milliseconds_per_start: float = 0
    calls: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """The operator's speed in units of the bare client's."""
        return self.bare_seconds / self.start_seconds


async def measure(server: ApiServer, folder: Path, size: int) -> Figures:
    """One size on a fresh API server."""
    figures, audit = Figures(size), AuditLog(server.audit_log)
    namespace = await asyncio.to_thread(server.fresh_namespace)
    operator = OperatorUnderTest(server, folder, watchNamespaces=[namespace])
    async with Rest(server.url, server.tokens["admin"], str(server.certificate)) as rest:
        await make_claim(rest, namespace)
        crowd, lag = Crowd(rest, namespace, size), LongestLag(operator)
        try:
            async with beside(crowd.watch(), lag.run()):
                await _plan(operator, crowd, audit, figures)
                await _stay_quiet(audit, figures)
                prepared = await _statuses(rest, crowd)
                await _start(operator, crowd, audit, figures)
                # At once after the operator, so that other work on the machine weighs on both alike.
                await _bare(server, rest, folder, prepared, await _requests(rest, crowd), figures)
                await _live(rest, crowd, audit, figures)
                figures.megabytes_highest = operator.megabytes("VmHWM")
                operator.stop()
                await _restart(rest, namespace, operator, audit, figures)
                figures.longest_lag_seconds = lag.seconds
        finally:
            operator.stop()
    return figures


async def _plan(operator: OperatorUnderTest, crowd: Crowd, audit: AuditLog, figures: Figures) -> None:
    operator.start()
    await operator.until_it_leads()
    audit.take()
    before = time.monotonic()
    await crowd.create()
    figures.plan_seconds = await crowd.until_all(crowd.in_state["PlanReady"], "planned", LONGEST_SECONDS) - before
    await _settle(operator)
    _note(figures, "plan", audit.take())


async def _stay_quiet(audit: AuditLog, figures: Figures) -> None:
    await asyncio.sleep(QUIET_SECONDS)
    calls = audit.take()
    figures.quiet_writes = writes_of(calls).total()
    figures.quiet_calls_per_second = round(calls.total() / QUIET_SECONDS, 1)


async def _start(operator: OperatorUnderTest, crowd: Crowd, audit: AuditLog, figures: Figures) -> None:
    busy, before = operator.cpu_seconds(), time.monotonic()
    await crowd.confirm()
    figures.start_seconds = await crowd.until_all(crowd.first_job, "started", LONGEST_SECONDS) - before
    latencies = [crowd.first_job[name] - crowd.confirmed[name] for name in crowd.names]
    figures.start_p50, figures.start_p99 = _quantiles(latencies)
    figures.cpu_milliseconds_per_start = 1000 * (operator.cpu_seconds() - busy) / len(crowd.names)
    await _settle(operator)
    figures.megabytes_started = operator.megabytes()
    _note(figures, "start", audit.take())


async def _live(rest: Rest, crowd: Crowd, audit: AuditLog, figures: Figures) -> None:
    chosen = crowd.names[:ENDED_AT_MOST]
    before = time.monotonic()
    async with beside(PaperJobs(rest, crowd.namespace, chosen).run()):
        ended = await crowd.until_all(crowd.in_state["Succeeded"], "succeeded", LONGEST_SECONDS, chosen)
        figures.ended, figures.life_seconds = len(chosen), ended - before
    _note(figures, "stages to the end", audit.take(), figures.ended)


async def _restart(rest: Rest, namespace: str, operator: OperatorUnderTest, audit: AuditLog, figures: Figures) -> None:
    """A new operator over the crowd: how soon it plans a new run, and what it does with the old ones."""
    newcomer = Crowd(rest, namespace, 1, prefix="newcomer")
    await newcomer.create()
    audit.take()
    before = time.monotonic()
    operator.start()
    async with beside(newcomer.watch()):
        planned = await newcomer.until_all(newcomer.in_state["PlanReady"], "planned", LONGEST_SECONDS)
    figures.restart_seconds = planned - before
    await _settle(operator)
    audit_before_newcomer = audit.take()
    own = 2  # the newcomer's status, and its Event
    figures.restart_writes = writes_of(audit_before_newcomer).total() - own
    figures.restart_calls_per_run = audit_before_newcomer.total() / figures.runs
    figures.megabytes_highest = max(figures.megabytes_highest, operator.megabytes("VmHWM"))


async def _settle(operator: OperatorUnderTest) -> None:
    """Wait until the operator has heard all and its queue is empty for two seconds."""
    calm, heard = 0, -1.0
    while calm < 4:
        found = await operator.metrics()
        events = found.get("mark_operator_events_total", -1)
        calm = calm + 1 if events == heard and found.get("mark_operator_waiting_runs") == 0 else 0
        heard = events
        await asyncio.sleep(0.5)


async def _statuses(rest: Rest, crowd: Crowd) -> dict[str, Body]:
    """The status of each planned run, as the operator wrote it."""
    return {run["metadata"]["name"]: run["status"] for run in (await rest.get(crowd.runs))["items"]}


async def _requests(rest: Rest, crowd: Crowd) -> dict[str, list[tuple[str, str, str, Body]]]:
    """What the operator wrote to start each run, in its order, with the confirmation before it. {namespace} is to be filled in."""
    core = "/api/v1/namespaces/{namespace}"
    statuses = await _statuses(rest, crowd)
    events: dict[str, list[Body]] = {name: [] for name in crowd.names}
    for event in (await rest.get(core.format(namespace=crowd.namespace) + "/events"))["items"]:
        if event["reason"] != "PlanReady":
            events[event["involvedObject"]["name"]].append(event)
    found: dict[str, list[tuple[str, str, str, Body]]] = {}
    for plan in (await rest.get(core.format(namespace=crowd.namespace) + "/configmaps"))["items"]:
        name = plan["metadata"].get("labels", {}).get(names.RUN_LABEL)
        if name is None:
            continue
        uid = plan["metadata"]["ownerReferences"][0]["uid"]
        job = bind(stored_jobs(plan)[0], kind="TrainingRun", uid=uid, attempt=1)
        run = f"/apis/{names.API_VERSION}/namespaces/{{namespace}}/trainingruns/{name}"
        own = {field: plan["metadata"][field] for field in ("name", "labels", "ownerReferences")}
        strict = "?fieldValidation=Strict&fieldManager=mark-operator"
        found[name] = [
            ("PATCH", run, MERGE, {"spec": {"dryRun": False, "confirm": True}}),
            ("PATCH", f"{run}/status?fieldManager=mark-operator&force=true", APPLY, _applied(name, statuses[name])),
            *(("POST", f"{core}/events{strict}", JSON, _bare_event(event)) for event in events[name]),
            (
                "POST",
                f"{core}/configmaps{strict}",
                JSON,
                {**plan, "apiVersion": "v1", "kind": "ConfigMap", "metadata": own},
            ),
            ("POST", f"/apis/batch/v1/namespaces/{{namespace}}/jobs{strict}", JSON, _without_namespace(job)),
        ]
    return found


def _bare_event(event: Body) -> Body:
    involved = {field: value for field, value in event["involvedObject"].items() if field != "namespace"}
    kept = {field: value for field, value in event.items() if field not in ("metadata", "involvedObject")}
    return {
        "apiVersion": "v1",
        "kind": "Event",
        **kept,
        "metadata": {"name": event["metadata"]["name"]},
        "involvedObject": {**involved, "namespace": "{namespace}"},
    }


def _without_namespace(body: Body) -> Body:
    return {**body, "metadata": {field: value for field, value in body["metadata"].items() if field != "namespace"}}


def _applied(name: str, status: Body) -> Body:
    return {"apiVersion": names.API_VERSION, "kind": "TrainingRun", "metadata": {"name": name}, "status": status}


async def _bare(
    server: ApiServer, rest: Rest, folder: Path, statuses: dict[str, Body], requests: dict[str, Any], figures: Figures
) -> None:
    """The same writes by a program that does nothing else, on runs of its own that are planned already."""
    namespace = await asyncio.to_thread(server.fresh_namespace)
    crowd = Crowd(rest, namespace, figures.runs)
    await crowd.create()
    await crowd.for_each(
        lambda name: rest.apply(f"{crowd.runs}/{name}/status", _applied(name, statuses[name]), "mark-operator")
    )
    path = folder / "requests.jsonl"
    path.write_text(
        "".join(json.dumps(requests[name]).replace("{namespace}", namespace) + "\n" for name in crowd.names)
    )
    words = [server.url, server.tokens["operator"], str(server.certificate), str(path), str(WORKERS)]
    program = str(Path(__file__).with_name("bare_client.py"))
    process = await asyncio.create_subprocess_exec(sys.executable, program, *words, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0, "the bare client failed"
    answer = json.loads(output)
    figures.bare_seconds = answer["seconds"]
    figures.bare_p50, figures.bare_p99 = _quantiles(answer["latencies"])


@dataclass
class Traffic:
    """Bytes of a whole one-stage life through TLS, watches included, for each run; and writes by number of stages."""

    bytes_sent: float
    bytes_received: float
    writes: dict[int, Counter[str]]


async def measure_traffic(server: ApiServer, folder: Path) -> Traffic:
    """Whole lives of a small crowd, one chain of stages after the other, counted at a relay. Not timed."""
    audit, writes = AuditLog(server.audit_log), {}
    sent = received = 0.0
    async with Rest(server.url, server.tokens["admin"], str(server.certificate)) as rest:
        for count, stages in CHAINS.items():
            async with CountedRelay(int(server.url.rsplit(":", 1)[1])) as relay:
                namespace = await asyncio.to_thread(server.fresh_namespace)
                await make_claim(rest, namespace)
                crowd = Crowd(rest, namespace, TRAFFIC_RUNS, stages=stages)
                url = f"https://127.0.0.1:{relay.port}"
                operator = OperatorUnderTest(server, folder, url, watchNamespaces=[namespace])
                operator.start()
                try:
                    async with beside(crowd.watch(), PaperJobs(rest, namespace, seconds=0.2).run()):
                        audit.take()
                        await crowd.create()
                        await crowd.until_all(crowd.in_state["PlanReady"], "planned", LONGEST_SECONDS)
                        await crowd.confirm()
                        await crowd.until_all(crowd.in_state["Succeeded"], "succeeded", LONGEST_SECONDS)
                        await _settle(operator)
                finally:
                    await asyncio.to_thread(operator.stop)  # what it says at its end goes through the relay, too
                writes[count] = writes_of(audit.take(), namespace)
                if count == 1:
                    sent, received = relay.sent / TRAFFIC_RUNS, relay.received / TRAFFIC_RUNS
    return Traffic(sent, received, writes)


def _note(figures: Figures, phase: str, calls: Counter[Call], runs: int | None = None) -> None:
    kinds = {True: "write", False: "read"}
    labels: Counter[str] = Counter()
    for call, count in calls.items():
        if call.resource == "leases" or call.verb == "watch":
            continue
        kind = "dry run" if call.dry_run else kinds[call.writes]
        labels[f"{kind}: {call.verb} {call.resource}"] += count
    figures.calls[phase] = {label: round(count / (runs or figures.runs), 2) for label, count in sorted(labels.items())}


def _quantiles(values: list[float]) -> tuple[float, float]:
    """The median and the 99th percentile."""
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return statistics.median(values), cuts[98]


def table(found: list[Figures]) -> str:
    """The figures as Markdown, one column a size."""
    rows: list[tuple[str, list[str]]] = [
        ("plans per second", [f"{f.runs / f.plan_seconds:.1f}" for f in found]),
        ("starts per second (confirmation to Job)", [f"{f.runs / f.start_seconds:.1f}" for f in found]),
        ("the same writes by the bare client, per second", [f"{f.runs / f.bare_seconds:.1f}" for f in found]),
        ("**ratio**", [f"**{f.ratio:.2f}**" for f in found]),
        (
            "confirmation to Job, p50 / p99, all confirmed at once",
            [f"{f.start_p50:.2f} / {f.start_p99:.2f} s" for f in found],
        ),
        ("lives per second after the start, Jobs on paper", [f"{f.ended / f.life_seconds:.1f}" for f in found]),
        ("operator's CPU for a start", [f"{f.cpu_milliseconds_per_start:.1f} ms" for f in found]),
        ("calls to start a run", [f"{sum(f.calls['start'].values()):.1f}" for f in found]),
        ("memory, all started", [f"{f.megabytes_started:.0f} MB" for f in found]),
        ("memory, highest", [f"{f.megabytes_highest:.0f} MB" for f in found]),
        ("longest lag of the event loop", [f"{f.longest_lag_seconds:.2f} s" for f in found]),
        (
            "restart over all of them, so many finished: until a new run is planned",
            [f"{f.ended:,}: {f.restart_seconds:.1f} s" for f in found],
        ),
        ("writes by that restart", [f"{f.restart_writes}" for f in found]),
        (f"writes in {QUIET_SECONDS} s of a quiet cluster", [f"{f.quiet_writes}" for f in found]),
    ]
    head = f"| runs | {' | '.join(f'{f.runs:,}' for f in found)} |\n|---|{'---:|' * len(found)}\n"
    return head + "".join(f"| {name} | {' | '.join(cells)} |\n" for name, cells in rows)


def _traffic_table(traffic: Traffic) -> str:
    lines = ["| stages | writes a run, Events included | of them |", "|---|---:|---|"]
    for count, writes in traffic.writes.items():
        parts = ", ".join(f"{number / TRAFFIC_RUNS:g} {what}" for what, number in sorted(writes.items()))
        lines.append(f"| {' '.join(CHAINS[count])} | {writes.total() / TRAFFIC_RUNS:g} | {parts} |")
    kilobytes = f"{traffic.bytes_sent / 1000:.0f} kB sent, {traffic.bytes_received / 1000:.0f} kB received"
    return "\n".join([*lines, "", f"One-stage life: {kilobytes} (TLS and watches included)."]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", nargs="*", type=int, default=[100, 1000, 5000])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench-operator")
    parser.add_argument("--no-traffic", action="store_true", help="leave out the counting of bytes and writes")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    options.out.mkdir(parents=True, exist_ok=True)
    found: list[Figures] = []
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder, control_plane(Path(folder)) as server:
            try:
                found.append(asyncio.run(measure(server, Path(folder), size)))
            finally:
                log = Path(folder) / "operator.log"
                (options.out / f"operator-{size}.log").write_bytes(log.read_bytes() if log.exists() else b"")
        print(table(found[-1:]), json.dumps(found[-1].calls, indent=1), flush=True)
    text = table(found)
    if not options.no_traffic:
        with tempfile.TemporaryDirectory() as folder, control_plane(Path(folder)) as server:
            text += "\n" + _traffic_table(asyncio.run(measure_traffic(server, Path(folder))))
    print(text)
    (options.out / "results.md").write_text(text)
    (options.out / "results.json").write_text(json.dumps([{**asdict(f), "ratio": f.ratio} for f in found], indent=1))


if __name__ == "__main__":
    main()
