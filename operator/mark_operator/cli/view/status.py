"""A run as it stands, on one screen; a list of runs; and one line for each change."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from mark_operator.cli.view.formatting import bar, duration, plain_table, seconds_between, short_digest
from mark_operator.cli.view.measures import measures_view, number, short_measures

Json = dict[str, Any]

_STYLES = {
    "Succeeded": "green",
    "Adopted": "green",
    "Passed": "green",
    "Failed": "bold red",
    "Cancelled": "yellow",
    "Suspended": "yellow",
    "Running": "cyan",
}
# What stands in the screen's other lines anyway.
_SAID_ELSEWHERE = {
    ("Planned", "True"),
    ("Admitted", "True"),
    ("Confirmed", "True"),
    ("Ready", "True"),
    ("Stalled", "False"),
    ("Succeeded", "Unknown"),
}


def status_view(run: Json, now: datetime) -> RenderableType:
    """One screen about one run."""
    status = run.get("status", {})
    return Group(*_parts(run, status, now))


def _parts(run: Json, status: Json, now: datetime) -> Iterator[RenderableType]:
    yield _headline(run, status, now)
    if not status:
        yield "The operator has not looked at this run yet. Is it installed, and does it watch this namespace?"
        return
    if status.get("stages"):
        yield ""
        yield _stages(status, now)
    if _is_running(status) and status.get("progress"):
        yield ""
        yield progress_line(status["progress"])
        if kept := status.get("lastCheckpoint"):
            age = duration(seconds_between(kept["time"], now))
            yield f"last checkpoint: step {kept['step']} of {kept['stage']}, {age} ago"
    messages = [_condition_line(condition, status.get("state")) for condition in _telling(status)]
    if messages:
        yield ""
        yield from messages
    yield from _failure(status)
    if result := status.get("result"):
        yield ""
        yield from _result(result)


def _headline(run: Json, status: Json, now: datetime) -> Text:
    metadata = run["metadata"]
    state = status.get("state") or "Unknown"
    line = Text(f"{run['kind']} {metadata['namespace']}/{metadata['name']}  ", style="bold")
    line.append(state, style=_STYLES.get(state, "bold"))
    if status.get("plan"):
        line.append(f"  plan {short_digest(status['plan']['hash'])}", style="")
    if confirmation := status.get("confirmation"):
        line.append(f", confirmed by {confirmation.get('by') or 'somebody'}")
    if started := status.get("startedAt"):
        line.append(f", {duration(seconds_between(started, status.get('finishedAt') or now))}")
    return line


def _stages(status: Json, now: datetime) -> RenderableType:
    table = plain_table("STAGE", "STATE", "ATTEMPT", "TIME", "RESULT", right=("ATTEMPT",))
    for stage in status["stages"]:
        started, finished = stage.get("startedAt"), stage.get("finishedAt")
        time = duration(seconds_between(started, finished or now)) if started else ""
        state = Text(stage["state"], style=_STYLES.get(stage["state"], ""))
        table.add_row(
            stage["stage"],
            state,
            str(stage.get("attempt", 1)) if started else "",
            time,
            short_measures(stage.get("measures", [])),
        )
    return table


def _numbers(stage: Json) -> str:
    return short_measures(stage.get("measures", []))


def progress_line(progress: Json) -> str:
    """Bar, step, loss, speed and the time that is left."""
    facts = [f"{progress['stage']:9}", bar(progress["percent"])]
    if progress.get("steps"):
        facts.append(f"step {progress.get('step', 0)}/{progress['steps']}")
    if progress.get("loss"):
        facts.append(f"loss {number(progress['loss'])}")
    if progress.get("tokensPerSecond"):
        facts.append(f"{float(progress['tokensPerSecond']):,.0f} tokens/s")
    if progress.get("etaSeconds") is not None:
        facts.append(f"{duration(progress['etaSeconds'])} left")
    return "  ".join(facts)


def _is_running(status: Json) -> bool:
    return status.get("state") in ("Starting", "Running", "Suspended")


def _telling(status: Json) -> list[Json]:
    """The conditions that say something which the rest of the screen does not."""
    seen = {stage["failure"]["message"] for stage in status.get("stages", []) if stage.get("failure")}
    telling = []
    for condition in status.get("conditions", []):
        if (condition["type"], condition["status"]) in _SAID_ELSEWHERE or condition["reason"] == "Running":
            continue
        if condition.get("message") and condition["message"] not in seen:
            seen.add(condition["message"])
            telling.append(condition)
    return telling


def _condition_line(condition: Json, state: str | None) -> Text:
    if condition["reason"] == state:  # the headline has the word already
        return Text(condition["message"])
    line = Text(f"{condition['type']}={condition['status']} ({condition['reason']}): ")
    return line.append(condition["message"])


def _failure(status: Json) -> Iterator[RenderableType]:
    failed = [stage for stage in status.get("stages", []) if stage.get("failure")]
    for stage in failed[-1:]:
        failure = stage["failure"]
        code = f", exit code {failure['exitCode']}" if failure.get("exitCode") is not None else ""
        yield ""
        yield Text(f"{stage['stage']} failed: {failure['reason']}{code}", style="bold red")
        yield f"  {failure['message']}"
        if failure.get("lastWords"):
            yield f"  last words: {failure['lastWords']}"
    if not failed:
        yield from _earlier_failure(status)


def _earlier_failure(status: Json) -> Iterator[RenderableType]:
    """Why an attempt before the newest one ended, of the last stage that needed more than one."""
    repeated = [stage for stage in status.get("stages", []) if stage.get("lastFailure")]
    for stage in repeated[-1:]:
        failure = stage["lastFailure"]
        yield ""
        yield Text(f"{stage['stage']}, the attempt before: {failure['reason']}", style="bold")
        yield f"  {failure['message']}"


def _result(result: Json) -> Iterator[RenderableType]:
    if result.get("adoptedRun"):
        yield f"Adopted from the run {result['adoptedRun']}; to do the work again, change spec.trainingRevision."
    if result.get("passed") is not None:
        yield f"Criteria: {'met' if result['passed'] else 'not met'}"
    if result.get("model"):
        yield f"Model: {result['model']}"
    if result.get("measures"):
        yield from measures_view(result["measures"])
    if result.get("artifacts"):
        yield ""
        table = plain_table("ARTIFACT", "PATH IN THE WORKSPACE", "DIGEST")
        for artifact in result["artifacts"]:
            table.add_row(artifact["kind"], artifact["path"], short_digest(artifact["digest"]))
        yield table


def runs_view(runs: list[Json], now: datetime) -> RenderableType:
    """All runs of a namespace, the newest last."""
    table = plain_table("KIND", "NAME", "STATE", "STAGE", "PROGRESS", "LOSS", "PLAN", "AGE", right=("PROGRESS", "LOSS"))
    for run in sorted(runs, key=lambda run: str(run["metadata"]["creationTimestamp"])):
        status = run.get("status", {})
        state = status.get("state") or "Unknown"
        progress = status.get("progress") or {}
        table.add_row(
            run["kind"],
            run["metadata"]["name"],
            Text(state, style=_STYLES.get(state, "")),
            status.get("stage") or "",
            f"{progress['percent']} %" if progress and _is_running(status) else "",
            number(progress.get("loss") or ""),
            short_digest((status.get("plan") or {}).get("hash", "")),
            duration(seconds_between(run["metadata"]["creationTimestamp"], now)),
        )
    return table


def change_lines(before: Json, after: Json) -> list[str]:
    """What has changed between two states of a run, one line each, for a log that nobody's terminal redraws."""
    old, new = before.get("status", {}), after.get("status", {})
    lines = [*_state_change(old, new), *_stage_changes(old, new)]
    progress = new.get("progress")
    if progress and _is_running(new) and _moved(old.get("progress"), progress):
        lines.append(progress_line(progress))
    return lines


def waiting_reason(run: Json) -> str:
    """What keeps the run, in the operator's words; empty while it works or has ended."""
    status = run.get("status", {})
    for condition in status.get("conditions", []):
        if condition["type"] == "Progressing" and condition["reason"] != "Running" and not status.get("finishedAt"):
            return str(condition.get("message", ""))
    return ""


def _state_change(old: Json, new: Json) -> Iterator[str]:
    if {old.get("state"), new.get("state")} == {"Starting", "Running"}:
        return  # between two stages; the line of the stage says more
    if new.get("state") and new.get("state") != old.get("state"):
        yield f"state {new['state']}"


def _stage_changes(old: Json, new: Json) -> Iterator[str]:
    earlier = {stage["stage"]: stage for stage in old.get("stages", [])}
    for stage in new.get("stages", []):
        was = earlier.get(stage["stage"], {"state": "Pending", "attempt": 1})
        if (stage["state"], stage.get("attempt", 1)) == (was["state"], was.get("attempt", 1)):
            continue
        attempt = f" (attempt {stage['attempt']})" if stage.get("attempt", 1) > 1 else ""
        took = ""
        if stage.get("startedAt") and stage.get("finishedAt"):
            took = f" after {duration(seconds_between(stage['startedAt'], stage['finishedAt']))}"
        told = (
            short_measures(stage.get("measures", [])) or stage.get("failure", {}).get("message", "")
            if stage.get("finishedAt")
            else ""
        )
        yield f"{stage['stage']:9} {stage['state']}{attempt}{took}{': ' + told if told else ''}"


def _moved(old: Json | None, new: Json) -> bool:
    """Whether progress is worth a line: another stage, or a tenth of it more."""
    if old is None or old["stage"] != new["stage"]:
        return True
    return bool(new["percent"] // 10 > old["percent"] // 10)
