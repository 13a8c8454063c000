"""Kubernetes quantities such as `500m` and `64Gi`, as exact numbers."""

from collections.abc import Mapping
from decimal import Decimal

BINARY = {suffix: Decimal(1024) ** power for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), start=1)}
DECIMAL = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    **{suffix: Decimal(1000) ** power for power, suffix in enumerate(("k", "M", "G", "T", "P", "E"), start=1)},
}


def parse(text: str) -> Decimal:
    """The number that a quantity stands for."""
    for suffixes in (BINARY, DECIMAL):
        for suffix, factor in suffixes.items():
            if text.endswith(suffix):
                return Decimal(text.removesuffix(suffix)) * factor
    return Decimal(text)


def total(quantities: Mapping[str, str], count: int) -> dict[str, Decimal]:
    """What `count` Pods ask for together."""
    return {name: parse(text) * count for name, text in quantities.items()}


def text_of(number: Decimal) -> str:
    """A number in the largest binary unit that divides it, as people write memory; plain otherwise."""
    for suffix, factor in reversed(BINARY.items()):
        if number >= factor and number % factor == 0:
            return f"{number / factor:f}{suffix}"
    return f"{number.normalize():f}"
