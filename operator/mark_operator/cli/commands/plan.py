"""`mark plan`: what will run once a run is confirmed."""

import time
from datetime import UTC, datetime
from pathlib import Path

import click

from mark_operator.cli.errors import ClusterError, ExitCode, InputError, RefusedError
from mark_operator.cli.options import Connection, connection_options, kind_option, output_option, print_data, show
from mark_operator.cli.runs import RunReference, is_current, parse_reference, read_run, state_of
from mark_operator.cli.session import Json, Session
from mark_operator.cli.view.plan import failed_checks, offline_plan_view, plan_view

_EXAMPLES = """\b
Examples:
  mark plan contracts-lora                      the plan of a run in the cluster
  mark plan contracts-lora --wait 60            ... that was applied just now
  mark plan erun/contracts-check -o json
  mark settings > settings.yaml
  mark plan -f run.yaml --settings settings.yaml    the same plan and hash, without a cluster
"""


@click.command(epilog=_EXAMPLES)
@click.argument("name", required=False)
@click.option("-f", "--file", type=click.Path(path_type=Path), help="Render this manifest without a cluster.")
@click.option("--settings", type=click.Path(path_type=Path), help="Settings from `mark settings`, with -f.")
@click.option("--wait", "seconds", type=float, default=0, metavar="SECONDS", help="Wait so long for the plan.")
@output_option()
@kind_option
@connection_options
def plan(
    name: str | None,
    file: Path | None,
    settings: Path | None,
    seconds: float,
    output: str | None,
    kind: str | None,
    connection: Connection,
) -> None:
    """Show the plan of the run NAME: its stages, checks and warnings, its hash, and the command that confirms it.

    Planning starts nothing. Exit code 1: a check failed, so the run cannot be confirmed.
    """
    if (name is None) == (file is None):
        raise InputError("name a run, or a manifest with -f; one of the two", "mark plan --help shows examples")
    if settings is not None and file is None:
        raise InputError(
            "--settings: goes with -f only", "the plan of a run in the cluster has the operator's settings"
        )
    if file is not None:
        _show_offline(file, settings, connection, output)
        return
    run = wait_for_plan(connection.open(), parse_reference(str(name), kind), seconds)
    if output:
        print_data(run["status"]["plan"], output)
    else:
        show(plan_view(run, datetime.now(UTC)))
    if failed_checks(run["status"]["plan"]):
        raise click.exceptions.Exit(ExitCode.RUN_FAILED)


def wait_for_plan(session: Session, reference: RunReference, seconds: float) -> Json:
    """The run, with a plan that was made from its spec as it is now."""
    deadline = time.monotonic() + seconds
    while True:
        run = read_run(session, reference)
        if run.get("status", {}).get("plan") and is_current(run):
            return run
        if time.monotonic() >= deadline:
            raise _no_plan(run, reference)
        time.sleep(0.5)


def _no_plan(run: Json, reference: RunReference) -> Exception:
    conditions = run.get("status", {}).get("conditions", [])
    reasons = [
        c["message"] for c in conditions if c["type"] == "Planned" and c["status"] != "True" and c.get("message")
    ]
    if reasons:
        return RefusedError(f"{reference.name} has no plan", reasons[0])
    if not state_of(run):
        return ClusterError(
            f"the operator has not planned {reference.name} yet",
            f"wait for it with: mark plan {reference.argument} --wait 60\n"
            "if that does not help, is the operator up? kubectl get pods -n mark-system",
        )
    return ClusterError(
        f"the plan of {reference.name} is older than its spec",
        f"wait for the new one: mark plan {reference.argument} --wait 60",
    )


def _show_offline(file: Path, settings: Path | None, connection: Connection, output: str | None) -> None:
    from mark_operator.cli.offline import namespace_of, plan_offline, read_runs, read_settings_of

    chosen = read_settings_of(settings)
    runs = read_runs(file)
    planned = [plan_offline(file, run, namespace_of(run, connection.target.namespace), chosen) for run in runs]
    if output:
        plans = [run["status"]["plan"] for run in planned]
        print_data(plans[0] if len(plans) == 1 else plans, output)
        return
    source = f"the settings of {settings}" if settings else "the default settings (name others with --settings)"
    for run in planned:
        show(
            offline_plan_view(
                run, pinned=f"The hash holds for the namespace {run['metadata']['namespace']} and {source}."
            )
        )
