"""Random valid values for the fields of a schema, and random single changes of one. It must not know what any field means."""

import random
import types
from collections.abc import Callable
from typing import Any, Literal, Union, get_args, get_origin

from mark_crds import shared
from mark_crds.model import Model
from pydantic import StringConstraints, ValidationError
from pydantic.fields import FieldInfo

Body = dict[str, Any]
WORDS = ("a", "b2", "legal", "tiny", "x-7", "research", "gpu", "other")

# One maker for each pattern in the schemas; a new pattern without one fails the test that meets it.
TEXTS: dict[str, Callable[[random.Random], str]] = {
    shared.DECIMAL_PATTERN: lambda dice: dice.choice(("0", "0.1", "0.25", "5e-1", "0.50", "1e-4", "0.0001", "0.9")),
    shared.NAME_PATTERN: lambda dice: dice.choice(WORDS),
    shared.PATH_PATTERN: lambda dice: "/".join(dice.choices(WORDS, k=dice.randint(1, 3))),
    shared.QUANTITY_PATTERN: lambda dice: f"{dice.randint(1, 99)}{dice.choice(('', 'Gi', 'Mi'))}",
    r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$": lambda dice: dice.choice((*WORDS, "a.b")),
    r"^[0-9a-f]{64}$": lambda dice: f"{dice.getrandbits(256):064x}",
    r"^[0-9a-f]{40}$": lambda dice: f"{dice.getrandbits(160):040x}",
    r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$": lambda dice: f"{dice.choice(WORDS)}/{dice.choice(WORDS)}",
    r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$": lambda dice: f"{dice.choice(WORDS)}.com/{dice.choice(WORDS)}",
    r"^[a-zA-Z0-9][a-zA-Z0-9._-]{1,61}[a-zA-Z0-9]$": lambda dice: f"{dice.choice(WORDS)}_{dice.randint(10, 99)}",
    r"^https://[A-Za-z0-9.-]+(:[0-9]+)?$": lambda dice: f"https://{dice.choice(WORDS)}:{dice.randint(1, 9999)}",
}


def random_value(annotation: Any, metadata: tuple[Any, ...], dice: random.Random) -> Any:
    """A value of this type as a manifest would hold it."""
    origin = get_origin(annotation)
    if origin is not None and hasattr(annotation, "__metadata__"):
        return random_value(annotation.__origin__, (*annotation.__metadata__, *metadata), dice)
    if origin in (Union, types.UnionType):
        chosen = dice.choice([item for item in get_args(annotation) if item is not type(None)])
        return random_value(chosen, metadata, dice)
    if origin is Literal:
        return dice.choice(get_args(annotation))
    if origin is tuple:
        return [random_value(get_args(annotation)[0], (), dice) for _ in range(dice.randint(_least(metadata), 3))]
    if origin is dict:
        key, value = get_args(annotation)
        return {random_value(key, (), dice): random_value(value, (), dice) for _ in range(dice.randint(0, 3))}
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return random_model(annotation, dice)
    return _scalar(annotation, metadata, dice)


def random_model(model: type[Model], dice: random.Random) -> Body:
    """A random manifest of a model; fields that may be absent often are. It need not obey the rules across fields."""
    return {
        str(field.alias): random_value(field.annotation, tuple(field.metadata), dice)
        for field in model.model_fields.values()
        if field.is_required() or dice.random() < 0.3
    }


def changed_once(body: Body, model: type[Model], dice: random.Random) -> tuple[str, Body]:
    """The manifest with one field, at any depth, set, changed or left out; and that field's path."""
    field = dice.choice(list(model.model_fields.values()))
    name, inner = str(field.alias), _inner_model(field)
    if inner is not None and isinstance(body.get(name), dict) and dice.random() < 0.9:
        path, deeper = changed_once(body[name], inner, dice)
        return f"{name}.{path}", {**body, name: deeper}
    if not field.is_required() and name in body and dice.random() < 0.3:
        return name, {key: value for key, value in body.items() if key != name}
    return name, {**body, name: random_value(field.annotation, tuple(field.metadata), dice)}


def is_valid(model: type[Model], body: Body) -> bool:
    try:
        model.model_validate(body)
    except ValidationError:
        return False
    return True


def _inner_model(field: FieldInfo) -> type[Model] | None:
    options = [field.annotation, *get_args(field.annotation)]
    return next((option for option in options if isinstance(option, type) and issubclass(option, Model)), None)


def _least(metadata: tuple[Any, ...]) -> int:
    return max((int(getattr(item, "min_length", None) or 0) for item in _flat(metadata)), default=0)


def _flat(metadata: tuple[Any, ...]) -> list[Any]:
    return [part for item in metadata for part in (item.metadata if isinstance(item, FieldInfo) else [item])]


def _scalar(annotation: Any, metadata: tuple[Any, ...], dice: random.Random) -> Any:
    items = _flat(metadata)
    if annotation is bool:
        return dice.random() < 0.5
    if annotation is int:
        low = next((item.ge for item in items if getattr(item, "ge", None) is not None), 0)
        high = next((item.le for item in items if getattr(item, "le", None) is not None), low + 1000)
        return dice.choice((low, high, dice.randint(low, high), dice.randint(low, min(high, low + 20))))
    assert annotation is str, annotation
    constraints = [item for item in items if isinstance(item, StringConstraints) or hasattr(item, "pattern")]
    pattern = next((item.pattern for item in constraints if item.pattern), None)
    return TEXTS[str(pattern)](dice) if pattern else dice.choice(WORDS)
