"""Headline numbers, base beside tuned. It must compute none."""

from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType

from mark_operator.cli.view.formatting import plain_table

Json = dict[str, Any]

_MODELS = ("base", "tuned")


def number(text: str) -> str:
    """A number as a person compares it: a count in full, anything else with four digits that count."""
    if text.isdigit():
        return f"{int(text):,}"
    try:
        return f"{round(float(text), 5):.4g}"
    except ValueError:
        return text


def short_measures(measures: list[Json]) -> str:
    """The first numbers in one line; digests and the grid of scores are for the tables."""
    kept = [m for m in measures if not m["name"].endswith("Digest") and "." not in m["name"]]
    return ", ".join(f"{measure['name']} {number(measure['value'])}" for measure in kept[:4])


def measures_view(measures: list[Json]) -> Iterator[RenderableType]:
    """The grid of scores as a table, everything else in one line."""
    grid: dict[str, dict[str, str]] = {}
    rest = []
    for measure in measures:
        model, _, name = measure["name"].partition(".")
        if model in _MODELS and name:
            grid.setdefault(name, {})[model] = number(measure["value"])
        else:
            rest.append(f"{measure['name']} {number(measure['value'])}")
    if grid:
        columns = [model for model in _MODELS if any(model in row for row in grid.values())]
        table = plain_table("SCORE", *map(str.upper, columns), right=tuple(map(str.upper, columns)))
        for name, row in grid.items():
            table.add_row(name, *(row.get(model, "") for model in columns))
        yield table
    if rest:
        yield ", ".join(rest)
