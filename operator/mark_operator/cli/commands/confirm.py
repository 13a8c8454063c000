"""`mark confirm`: the second of the two steps. One patch, bound to the plan that was shown."""

import click

from mark_operator.cli.commands.plan import wait_for_plan
from mark_operator.cli.errors import InputError, RefusedError
from mark_operator.cli.options import Connection, connection_options, kind_option, say, show
from mark_operator.cli.runs import FINISHED_STATES, RunReference, parse_reference, state_of
from mark_operator.cli.session import Json, own_path
from mark_operator.cli.view.formatting import short_digest
from mark_operator.cli.view.plan import confirming_view, failed_checks

SHORTEST_HASH = 8
# The operator plans within a second; a person who applies and confirms in one line shall not need a pause.
PLAN_SECONDS = 10

_EXAMPLES = """\b
Examples:
  mark confirm contracts-lora
  mark confirm contracts-lora --plan 3f9a1c27b8de       only if the plan is still this one
  mark confirm erun/contracts-check && mark status erun/contracts-check --watch
"""


@click.command(epilog=_EXAMPLES)
@click.argument("name")
@click.option("--plan", "plan_hash", metavar="HASH", help="Confirm only this plan; 8 or more of its first digits.")
@kind_option
@connection_options
def confirm(name: str, plan_hash: str | None, kind: str | None, connection: Connection) -> None:
    """Start the run NAME: confirm the plan that it has now.

    Prints what will run, then sets dryRun: false, confirm: true, confirmPlan and confirmedBy in one change. Were the
    plan to change in between, nothing would start.
    """
    session, reference = connection.open(), parse_reference(name, kind)
    if plan_hash is not None and len(plan_hash) < SHORTEST_HASH:
        raise InputError(f"--plan {plan_hash}: too short", f"give at least {SHORTEST_HASH} digits")
    run = wait_for_plan(session, reference, PLAN_SECONDS)
    require_confirmable(run, reference, plan_hash)
    full_hash = run["status"]["plan"]["hash"]
    if run["spec"].get("confirm") and run["spec"].get("confirmPlan") == full_hash:
        say(f"{reference.name} is confirmed already; follow it with: mark status {reference.argument} --watch")
        return
    show(confirming_view(run))
    body = confirmation(full_hash, session.user_name())
    session.patch(own_path(reference.kind, session.namespace, reference.name), body)
    namespace = f" -n {connection.target.namespace}" if connection.target.namespace else ""
    say(f"\nconfirmed: {reference.name} runs the plan {short_digest(full_hash)} as {body['spec']['confirmedBy']}")
    say(f"  follow it:  mark status {reference.argument}{namespace} --watch")
    say(f"  stop it:    mark cancel {reference.argument}{namespace}")


def confirmation(plan_hash: str, user: str) -> Json:
    """The one patch that confirms a plan."""
    return {"spec": {"dryRun": False, "confirm": True, "confirmPlan": plan_hash, "confirmedBy": user}}


def require_confirmable(run: Json, reference: RunReference, plan_hash: str | None) -> None:
    """Refuse what the operator would not start."""
    plan, state = run["status"]["plan"], state_of(run)
    if plan_hash is not None and not plan["hash"].startswith(plan_hash):
        raise RefusedError(
            f"the plan of {reference.name} is {short_digest(plan['hash'])} now, not {short_digest(plan_hash)}",
            f"read it again: mark plan {reference.argument}",
        )
    if state in FINISHED_STATES:
        raise RefusedError(
            f"{reference.name} has ended: {state}",
            "create a run of another name, or delete this one, change spec.trainingRevision and apply it again",
        )
    if failed := failed_checks(plan):
        raise RefusedError(
            f"{reference.name} cannot run: {', '.join(check['name'] for check in failed)}",
            "\n".join(f"{check['name']}: {check['message']}" for check in failed),
        )
