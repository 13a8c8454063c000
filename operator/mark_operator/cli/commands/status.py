"""`mark status`: how a run stands, or all runs; --watch follows one to its end."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import click
from rich.live import Live

from mark_operator.cli.errors import ClusterError, ExitCode, InputError, NotFoundError
from mark_operator.cli.options import (
    Connection,
    connection_options,
    console,
    kind_option,
    output_option,
    print_data,
    say,
    show,
)
from mark_operator.cli.runs import (
    FINISHED_STATES,
    GOOD_STATES,
    KIND_NAMES,
    RunReference,
    parse_reference,
    read_run,
    state_of,
)
from mark_operator.cli.session import Json, Session, own_path
from mark_operator.cli.view.status import change_lines, runs_view, status_view, waiting_reason

LOOK_SECONDS = 1.0
# Every Pod waits for a moment; only longer waits are worth a line.
WORTH_SAYING_SECONDS = 10

_EXAMPLES = """\b
Examples:
  mark status                          all runs of the namespace
  mark status contracts-lora
  mark status contracts-lora --watch   live, to the end
  mark status erun/contracts-check -o json

\b
Exit codes with --watch: 0 Succeeded or Adopted, 1 Failed or Cancelled, 130 interrupted (the run goes on).
"""


@click.command(epilog=_EXAMPLES)
@click.argument("name", required=False)
@click.option("-w", "--watch", is_flag=True, help="Follow the run to its end.")
@output_option()
@kind_option
@connection_options
def status(name: str | None, watch: bool, output: str | None, kind: str | None, connection: Connection) -> None:
    """Show how the run NAME stands: stages, progress, what keeps it, and its result. Without NAME, list all runs."""
    session = connection.open()
    if name is None:
        if watch:
            raise InputError("--watch: needs the NAME of a run")
        _list(session, kind, output)
        return
    reference = parse_reference(name, kind)
    run = read_run(session, reference)
    if watch:
        run = _follow(session, reference, run)
    if output:
        print_data(run.get("status", {}), output)
    elif not watch or not console().is_terminal:
        show(status_view(run, datetime.now(UTC)))
    if watch and state_of(run) not in GOOD_STATES:
        raise click.exceptions.Exit(ExitCode.RUN_FAILED)


def _list(session: Session, kind: str | None, output: str | None) -> None:
    kinds = [kind] if kind else list(KIND_NAMES)
    # The items of a list carry no kind of their own.
    runs = [{**run, "kind": k} for k in kinds for run in session.items(own_path(k, session.namespace))]
    if output:
        print_data(runs, output)
    elif runs:
        show(runs_view(runs, datetime.now(UTC)))
    else:
        say(f"no runs in the namespace {session.namespace}")


def _follow(session: Session, reference: RunReference, run: Json) -> Json:
    """The run at its end. A terminal shows the whole screen live, anything else one line for each change."""
    with _show_live() if console().is_terminal else _show_lines() as present:
        present.send(run)
        while state_of(run) not in FINISHED_STATES:
            time.sleep(LOOK_SECONDS)
            run = _read_patiently(session, reference, run)
            present.send(run)
    return run


def _read_patiently(session: Session, reference: RunReference, last: Json) -> Json:
    """The run; the last known one while the API server does not answer."""
    try:
        return read_run(session, reference)
    except NotFoundError:
        raise
    except ClusterError as error:
        say(f"{error.message}; trying again")
        return last


@contextmanager
def _show_live() -> Iterator["_Screen | _Lines"]:
    with Live(console=console(), refresh_per_second=4) as live:
        yield _Screen(live)


@contextmanager
def _show_lines() -> Iterator["_Screen | _Lines"]:
    yield _Lines()


class _Screen:
    """One screen, drawn again at each look."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def send(self, run: Json) -> None:
        self._live.update(status_view(run, datetime.now(UTC)))


class _Lines:
    """A line with the time for each change, and for what has kept the run for a while."""

    def __init__(self) -> None:
        self._last: Json = {}
        self._reason = ""
        self._since = 0.0

    def send(self, run: Json) -> None:
        for line in [*change_lines(self._last, run), *self._long_wait(run)]:
            click.echo(f"{datetime.now(UTC):%H:%M:%S}  {line}")
        self._last = run

    def _long_wait(self, run: Json) -> Iterator[str]:
        reason, now = waiting_reason(run), time.monotonic()
        if reason != self._reason:
            self._reason, self._since = reason, now
        elif reason and now - self._since > WORTH_SAYING_SECONDS:
            self._since = math.inf
            yield f"waiting: {reason}"
