"""`mark logs`: what the Pods of a stage have written."""

import time

import click
from mark_crds import names

from mark_operator.cli.errors import ClusterError, InputError, NotFoundError
from mark_operator.cli.options import Connection, connection_options, kind_option, say
from mark_operator.cli.runs import RunReference, parse_reference, read_run, state_of
from mark_operator.cli.session import Json, Session, path

_INDEX = "batch.kubernetes.io/job-completion-index"

_EXAMPLES = """\b
Examples:
  mark logs contracts-lora                      of the stage that runs or ran last
  mark logs contracts-lora --stage lora -f
  mark logs contracts-lora --stage lora --attempt 1 --node 3
"""


@click.command(epilog=_EXAMPLES)
@click.argument("name")
@click.option("--stage", type=click.Choice(list(names.STAGE_NAMES)), help="Default: the stage that runs or ran last.")
@click.option("--attempt", type=click.IntRange(min=1), help="Default: the newest attempt.")
@click.option("--node", type=click.IntRange(min=0), default=0, help="Which Pod of a stage with several; default: 0.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the Pod ends; wait for it to start.")
@click.option("--tail", type=click.IntRange(min=1), help="Only so many of the last lines.")
@kind_option
@connection_options
def logs(
    name: str,
    stage: str | None,
    attempt: int | None,
    node: int,
    follow: bool,
    tail: int | None,
    kind: str | None,
    connection: Connection,
) -> None:
    """Print the log of a stage of the run NAME."""
    session, reference = connection.open(), parse_reference(name, kind)
    job = job_of(read_run(session, reference), reference, stage, attempt)
    pod = _find_pod(session, job, node, wait=follow)
    query = {"container": names.TRAINER_CONTAINER, "follow": str(follow).lower()}
    if tail:
        query["tailLines"] = str(tail)
    for line in session.lines(f"{path('pods', session.namespace, pod)}/log", query):
        click.echo(line)


def job_of(run: Json, reference: RunReference, stage: str | None, attempt: int | None) -> str:
    """The name of the Job of a stage and attempt."""
    stages = {entry["stage"]: entry for entry in run.get("status", {}).get("stages", [])}
    begun = [entry for entry in stages.values() if entry.get("startedAt")]
    if not begun:
        raise NotFoundError(
            f"no stage of {reference.name} has begun; it is {state_of(run) or 'not planned yet'}",
            f"mark status {reference.argument}",
        )
    entry = begun[-1] if stage is None else stages.get(stage)
    if entry is None or not entry.get("startedAt"):
        raise InputError(f"--stage {stage}: has not begun", f"begun are: {', '.join(e['stage'] for e in begun)}")
    newest = entry.get("attempt", 1)
    if attempt is not None and attempt > newest:
        raise InputError(f"--attempt {attempt}: the newest attempt of {entry['stage']} is {newest}")
    return names.job_name(reference.kind, reference.name, entry["stage"], attempt or newest)


def _find_pod(session: Session, job: str, node: int, *, wait: bool) -> str:
    """The newest Pod of a Job with this index, once it has a log."""
    told = ""
    while True:
        pods = session.items(path("pods", session.namespace), labelSelector=f"batch.kubernetes.io/job-name={job}")
        mine = [pod for pod in pods if pod["metadata"].get("annotations", {}).get(_INDEX, "0") == str(node)]
        mine.sort(key=lambda pod: str(pod["metadata"]["creationTimestamp"]))
        if mine and _has_log(mine[-1]):
            return str(mine[-1]["metadata"]["name"])
        why = _waits_for(mine[-1]) if mine else f"the Job {job} has no Pod {node}"
        if not wait:
            raise ClusterError(f"there is no log yet: {why}", "wait for it with --follow, or look: kubectl get pods")
        if why != told:
            say(f"waiting: {why}")
            told = why
        time.sleep(1)


def _has_log(pod: Json) -> bool:
    return any(
        state["state"].keys() & {"running", "terminated"} for state in pod["status"].get("containerStatuses", [])
    )


def _waits_for(pod: Json) -> str:
    name = pod["metadata"]["name"]
    for container in pod["status"].get("containerStatuses", []):
        if waiting := container["state"].get("waiting"):
            return f"{name}: {waiting.get('reason')} {waiting.get('message', '')}".rstrip()
    conditions = [
        c["message"] for c in pod["status"].get("conditions", []) if c["status"] == "False" and c.get("message")
    ]
    return f"{name}: {'; '.join(conditions) or pod['status'].get('phase')}"
