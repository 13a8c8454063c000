"""The settings that the operator of this cluster runs with, as its ConfigMap says. It must change nothing."""

import json
from typing import Any

from mark_operator.cli.errors import ClusterError, NotFoundError
from mark_operator.cli.session import Json, Session, path

DEFAULT_NAMESPACE = "mark-system"
SETTINGS_KEY = "settings.json"
_SELECTOR = "app.kubernetes.io/name=mark-operator"


def read_settings(session: Session, operator_namespace: str | None) -> Json:
    """The settings of the operator in the given namespace; without one, in mark-system, else wherever it is."""
    found = _config_maps(session, operator_namespace or DEFAULT_NAMESPACE)
    if not found and operator_namespace is None:
        found = _config_maps(session, None)
    if not found:
        raise NotFoundError(
            f"no operator's settings in the namespace {operator_namespace or DEFAULT_NAMESPACE}",
            "name its namespace with --operator-namespace; `helm list --all-namespaces` shows where it is installed",
        )
    if len(found) > 1:
        places = ", ".join(config_map["metadata"]["namespace"] for config_map in found)
        raise NotFoundError(f"several operators have settings: {places}", "name one with --operator-namespace")
    settings: Json = json.loads(found[0]["data"][SETTINGS_KEY])
    return settings


def _config_maps(session: Session, namespace: str | None) -> list[Json]:
    found = session.items(path("configmaps", namespace), labelSelector=_SELECTOR)
    return [config_map for config_map in found if SETTINGS_KEY in config_map.get("data", {})]


def trainer_image(session: Session, operator_namespace: str | None) -> tuple[str, int] | None:
    """Image and user id of the operator's Jobs; None when this user may not know."""
    try:
        settings: dict[str, Any] = read_settings(session, operator_namespace)
    except ClusterError:
        return None
    return settings["trainerImage"], int(settings.get("runAsUser", 1000))
