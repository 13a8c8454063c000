"""The table of accepted and refused specs, and how its changes are laid over the base manifests."""

from pathlib import Path
from typing import Any

import yaml

TABLE: dict[str, Any] = yaml.safe_load((Path(__file__).parents[1] / "golden" / "spec-cases.yaml").read_text())


def laid_over(base: Any, change: Any) -> Any:
    """A copy of base with change merged in; null removes."""
    if not (isinstance(base, dict) and isinstance(change, dict)):
        return change
    merged = {key: laid_over(base.get(key), value) for key, value in change.items() if value is not None}
    return {**{key: value for key, value in base.items() if key not in change}, **merged}
