"""`mark settings`: what the operator of the cluster was told."""

import click

from mark_operator.cli.operator_settings import read_settings
from mark_operator.cli.options import Connection, connection_options, output_option, print_data

_EXAMPLES = """\b
Examples:
  mark settings > settings.yaml
  mark plan -f run.yaml --settings settings.yaml
"""


@click.command(epilog=_EXAMPLES)
@click.option("--operator-namespace", help="Namespace of the operator; default: mark-system, else where it is found.")
@output_option()
@connection_options
def settings(operator_namespace: str | None, output: str | None, connection: Connection) -> None:
    """Print the settings of the operator. They are part of every plan, so offline plans need them."""
    print_data(read_settings(connection.open(), operator_namespace), output or "yaml")
