"""`mark freeze` and `mark unfreeze`: the stop switch for all starts of an installation."""

from datetime import UTC, datetime

import click
from mark_crds import names

from mark_operator.cli.errors import NotFoundError
from mark_operator.cli.operator_settings import DEFAULT_NAMESPACE, read_settings
from mark_operator.cli.options import Connection, connection_options, say
from mark_operator.cli.session import Json, Session, path

_OPERATOR_NAMESPACE = click.option(
    "--operator-namespace", help="Namespace of the operator; default: mark-system, else where it is found."
)


@click.command(epilog='\b\nExamples:\n  mark freeze --reason "storage maintenance until Friday"\n')
@click.option("--reason", required=True, help="Why, for everybody whose run waits.")
@_OPERATOR_NAMESPACE
@connection_options
def freeze(reason: str, operator_namespace: str | None, connection: Connection) -> None:
    """Let no further run start, from now on. Runs that have started go on; confirmed ones wait as Frozen."""
    session = connection.open()
    namespace = _namespace(session, operator_namespace)
    body = switch(reason, session.user_name())
    try:
        session.get(path("configmaps", namespace, names.FREEZE_NAME))
    except NotFoundError:
        session.create(path("configmaps", namespace), body)
    else:
        session.patch(path("configmaps", namespace, names.FREEZE_NAME), {"data": body["data"]})
    say(f"frozen: no run starts until `mark unfreeze` (ConfigMap {namespace}/{names.FREEZE_NAME})")


@click.command(epilog="\b\nExamples:\n  mark unfreeze\n")
@_OPERATOR_NAMESPACE
@connection_options
def unfreeze(operator_namespace: str | None, connection: Connection) -> None:
    """Let runs start again. Confirmed ones that waited start within a minute."""
    session = connection.open()
    namespace = _namespace(session, operator_namespace)
    session.delete(path("configmaps", namespace, names.FREEZE_NAME))
    say(f"not frozen by ConfigMap {namespace}/{names.FREEZE_NAME}; the setting `frozen` is shown by `mark settings`")


def switch(reason: str, user: str) -> Json:
    """The ConfigMap that stops all starts."""
    since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    data = {names.FROZEN_KEY: "true", names.FREEZE_REASON_KEY: f"{reason} ({user}, {since})"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": names.FREEZE_NAME}, "data": data}


def _namespace(session: Session, operator_namespace: str | None) -> str:
    """Where the operator looks for the switch, as its own settings say."""
    settings = read_settings(session, operator_namespace)
    return str(settings.get("operatorNamespace") or operator_namespace or DEFAULT_NAMESPACE)
