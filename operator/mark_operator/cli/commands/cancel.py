"""`mark cancel`: takes a confirmation back."""

import time

import click

from mark_operator.cli.errors import ClusterError, RefusedError
from mark_operator.cli.options import Connection, connection_options, kind_option, say
from mark_operator.cli.runs import FINISHED_STATES, RunReference, parse_reference, read_run, state_of
from mark_operator.cli.session import Json, Session, own_path

_EXAMPLES = """\b
Examples:
  mark cancel contracts-lora
  mark cancel contracts-lora --wait 300       until its Pods have saved a checkpoint and ended
"""


@click.command(epilog=_EXAMPLES)
@click.argument("name")
@click.option("--wait", "seconds", type=float, default=0, metavar="SECONDS", help="Wait so long until it has ended.")
@kind_option
@connection_options
def cancel(name: str, seconds: float, kind: str | None, connection: Connection) -> None:
    """Take the confirmation of the run NAME back.

    A run that has started stops after a checkpoint and ends as Cancelled, for good; what its finished stages published
    stays. A run that has not started goes back to its plan.
    """
    session, reference = connection.open(), parse_reference(name, kind)
    run = read_run(session, reference)
    if state_of(run) in FINISHED_STATES:
        raise RefusedError(f"{reference.name} has ended already: {state_of(run)}")
    if not run["spec"].get("confirm"):
        say(f"{reference.name} is not confirmed, so nothing runs and nothing was changed")
        return
    session.patch(own_path(reference.kind, session.namespace, reference.name), {"spec": {"confirm": False}})
    say(_what_happens(run, reference))
    if seconds and _started(run):
        _wait_for_end(session, reference, seconds)


def _started(run: Json) -> bool:
    return bool(run.get("status", {}).get("startedAt"))


def _what_happens(run: Json, reference: RunReference) -> str:
    if not _started(run):
        return f"the confirmation of {reference.name} is taken back; it had not started, and can be confirmed again"
    seconds = run["spec"].get("terminationGracePeriodSeconds", 120)
    return (
        f"{reference.name} is being cancelled: its Pods have {seconds} s to save a checkpoint, "
        "then it ends as Cancelled\n"
        "what finished stages published stays; to run it again, create a run of another name"
    )


def _wait_for_end(session: Session, reference: RunReference, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while state_of(run := read_run(session, reference)) not in FINISHED_STATES:
        if time.monotonic() > deadline:
            raise ClusterError(
                f"{reference.name} is still {state_of(run)} after {seconds:.0f} s", f"mark status {reference.argument}"
            )
        time.sleep(0.5)
    say(f"{reference.name} has ended: {state_of(run)}")
