"""The typed models accept and refuse what the table says, with the table's words."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from mark_crds.eval_run import EvalRunSpec
from mark_crds.registered_model import RegisteredModelSpec
from mark_crds.training_run import TrainingRunSpec
from pydantic import ValidationError

TABLE = yaml.safe_load((Path(__file__).parents[1] / "golden" / "spec-cases.yaml").read_text())
SPECS = {"TrainingRun": TrainingRunSpec, "EvalRun": EvalRunSpec, "Model": RegisteredModelSpec}
CASES = [
    pytest.param(kind, case, id=f"{kind}: {case['name']}")
    for kind, table in TABLE.items()
    for case in table["cases"]
    if not case.get("server")
]


def laid_over(base: Any, change: Any) -> Any:
    """A copy of base with change merged in; null removes."""
    if not (isinstance(base, dict) and isinstance(change, dict)):
        return change
    merged = {key: laid_over(base.get(key), value) for key, value in change.items() if value is not None}
    return {**{key: value for key, value in base.items() if key not in change}, **merged}


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_spec(kind: str, case: dict[str, Any]) -> None:
    manifest = laid_over(TABLE[kind]["base"], case.get("set", {}))
    if "refused" not in case:
        assert SPECS[kind].model_validate(manifest["spec"])
        return
    with pytest.raises(ValidationError) as refusal:
        SPECS[kind].model_validate(manifest["spec"])
    assert case["refused"] in str(refusal.value)


def test_every_rule_with_a_python_side_refuses_in_the_table() -> None:
    refusals = [case["refused"] for table in TABLE.values() for case in table["cases"] if "refused" in case]
    for spec in (TrainingRunSpec, EvalRunSpec):
        for rule in spec.rules:
            assert any(refusal in rule.message for refusal in refusals), rule.message
