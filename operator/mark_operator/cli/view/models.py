"""The registry as a table, and one entry with its versions."""

from collections.abc import Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from mark_operator.cli.view.formatting import clock, plain_table, short_digest
from mark_operator.cli.view.measures import measures_view

Json = dict[str, Any]


def models_view(models: list[Json], picks: dict[str, str]) -> RenderableType:
    """All entries of a namespace, and what the AutoPipeline picks for each base model."""
    table = plain_table("NAME", "FAMILY", "VERSIONS", "CURRENT", "BASE", "NEWEST FROM", right=("VERSIONS",))
    for model in models:
        versions = _versions(model)
        newest = versions[-1] if versions else {}
        table.add_row(
            model["metadata"]["name"],
            model["spec"]["family"],
            str(len(versions)),
            short_digest(_current(model)) or "none",
            newest.get("base", ""),
            newest.get("run", ""),
        )
    chosen = [f"For the base {base} the AutoPipeline picks {why}." for base, why in picks.items()]
    return Group(table, *(["", *chosen] if chosen else []))


def model_view(model: Json) -> RenderableType:
    """One entry with its versions, the newest first."""
    return Group(*_parts(model))


def _parts(model: Json) -> Iterator[RenderableType]:
    spec = model["spec"]
    yield Text(f"Model {model['metadata']['namespace']}/{model['metadata']['name']}", style="bold")
    preferred = "preferred over its base" if spec.get("preferRagFinetuned", True) else "not preferred over its base"
    promoted = short_digest(spec.get("promotedVersion", "")) or "not set"
    yield f"family {spec['family']}, {preferred}, promoted version {promoted}"
    yield ""
    table = plain_table("VERSION", "CURRENT", "PASSED", "RUN", "CREATED", "PATH")
    for version in reversed(_versions(model)):
        table.add_row(
            short_digest(version["digest"]),
            "yes" if version["digest"] == _current(model) else "",
            {True: "yes", False: "no", None: "not judged"}[version.get("passed")],
            version["run"],
            clock(version["created"]),
            version["path"],
        )
    yield table
    for version in reversed(_versions(model)):
        if version.get("headline"):
            yield f"\nversion {short_digest(version['digest'])}"
            yield from measures_view(version["headline"])


def _versions(model: Json) -> list[Json]:
    found: list[Json] = model.get("status", {}).get("versions", [])
    return found


def _current(model: Json) -> str:
    return str(model.get("status", {}).get("current", ""))
