"""The stop switch for all starts: frozen unless it is known that it is not."""

from mark_crds import names

from mark_operator.messages import Note, note, shorten
from mark_operator.seen import Findings
from mark_operator.settings import Settings

OFF = "false"


def frozen(settings: Settings, findings: Findings | None) -> Note | None:
    """Why nothing may start, or None when it may. A switch that cannot be read counts as on."""
    if settings.frozen:
        return note("Frozen", why="the operator's setting frozen is true")
    answer = (findings or Findings()).freeze
    where = f"ConfigMap {settings.operator_namespace}/{names.FREEZE_NAME}"
    if answer.outcome == "Missing":
        return None
    if answer.outcome != "Found":
        return note("Frozen", why=shorten(f"{where} cannot be read, so it counts as on ({answer.message})"))
    data = answer.item.get("data") or {}
    if data.get(names.FROZEN_KEY) == OFF:
        return None
    return note("Frozen", why=shorten(f"{where} says: {data.get(names.FREEZE_REASON_KEY) or 'no reason given'}"))
