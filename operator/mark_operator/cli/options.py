"""Options that every command shares, and printing. It must not talk to the cluster before a command asks."""

import json
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import click
import yaml
from rich.console import Console, RenderableType

from mark_operator.cli.session import Session, Target, connect

_Command = TypeVar("_Command", bound=Callable[..., Any])

# When nobody's terminal sets a width: wide enough that no table wraps.
PIPE_WIDTH = 160


def connection_options(command: _Command) -> _Command:
    """Give a command --namespace, --context and --kubeconfig, and a `connection` instead of them."""

    @click.option("-n", "--namespace", help="Namespace; default: that of the kubectl context.")
    @click.option("--context", help="kubectl context; default: the current one.")
    @click.option("--kubeconfig", help="Path of a kubeconfig; default: $KUBECONFIG, then ~/.kube/config.")
    @wraps(command)
    def with_connection(
        *args: Any, namespace: str | None, context: str | None, kubeconfig: str | None, **kwargs: Any
    ) -> Any:
        outer: Target = click.get_current_context().find_object(Target) or Target()
        target = Target(
            namespace=namespace or outer.namespace,
            context=context or outer.context,
            kubeconfig=kubeconfig or outer.kubeconfig,
        )
        return command(*args, connection=Connection(target), **kwargs)

    return with_connection  # type: ignore[return-value]


class Connection:
    """Connects on first use, so that a command that needs no cluster runs without one."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._session: Session | None = None

    def open(self) -> Session:
        """The session."""
        if self._session is None:
            self._session = connect(self.target)
        return self._session


def output_option(*formats: str) -> Callable[[_Command], _Command]:
    """Give a command -o with these formats besides the plain one."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(formats or ("json", "yaml")),
        help="Print data instead of a text for people.",
    )


def kind_option(command: _Command) -> _Command:
    """Give a command --kind."""
    return click.option(
        "--kind", type=click.Choice(("TrainingRun", "EvalRun")), help="Kind of NAME; default: TrainingRun."
    )(command)


def console(*, stderr: bool = False) -> Console:
    """Where text for people goes. Square brackets in messages are no markup."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False)


def show(renderable: RenderableType) -> None:
    """Print for people. What no terminal reads has no blanks at the end of its lines."""
    target = console()
    if target.is_terminal:
        target.print(renderable)
        return
    with target.capture() as captured:
        target.print(renderable)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def say(text: str) -> None:
    """One line of comment, on standard error, so that standard output stays what was asked for."""
    click.echo(text, err=True)


def print_data(data: Any, output: str) -> None:
    """Print for programs."""
    if output == "json":
        click.echo(json.dumps(data, indent=2, ensure_ascii=False))
    else:
        click.echo(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), nl=False)
