"""`mark report`: is the tuned model better?"""

import json

import click

from mark_operator.cli.commands.get import copying_for, find_artifact, read_artifact
from mark_operator.cli.errors import ClusterError
from mark_operator.cli.options import Connection, connection_options, kind_option, show
from mark_operator.cli.runs import parse_reference, read_run
from mark_operator.cli.view.report import report_view
from mark_operator.cli.workspace.copy_pod import running_copy_pod

_EXAMPLES = """\b
Examples:
  mark report contracts-lora
  mark report erun/contracts-check
  mark report contracts-lora --json > report.json
  mark get contracts-lora page            the same as a page for the browser, with a plot
"""


@click.command(epilog=_EXAMPLES)
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print the report's file as it is.")
@click.option("--image", envvar="MARK_IMAGE", help="Image of the copy Pod; default: that of the run.")
@kind_option
@connection_options
def report(name: str, as_json: bool, image: str | None, kind: str | None, connection: Connection) -> None:
    """Show the evaluation of the run NAME: base beside tuned, closed book and with passages, with 95 % intervals.

    The report is read from the workspace, and its sha256 compared with the run's status.
    """
    session, reference = connection.open(), parse_reference(name, kind)
    run = read_run(session, reference)
    made = find_artifact(run, reference, "report")
    with running_copy_pod(session, copying_for(session, run, image)) as pod:
        content = read_artifact(session, pod, made)
    if as_json:
        click.echo(content, nl=False)
        return
    try:
        show(report_view(json.loads(content)))
    except (KeyError, TypeError, ValueError) as error:
        raise ClusterError(
            f"{made['path']}: is no report that this version of mark can read ({error!r})",
            f"see it as it is: mark report {reference.argument} --json",
        ) from error
