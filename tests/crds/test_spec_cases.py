"""The typed models accept and refuse what the table says, with the table's words."""

from typing import Any

import pytest
from mark_crds.eval_run import EvalRunSpec
from mark_crds.registered_model import RegisteredModelSpec
from mark_crds.training_run import TrainingRunSpec
from pydantic import ValidationError
from spec_table import TABLE, laid_over

SPECS = {"TrainingRun": TrainingRunSpec, "EvalRun": EvalRunSpec, "Model": RegisteredModelSpec}
CASES = [
    pytest.param(kind, case, id=f"{kind}: {case['name']}")
    for kind, table in TABLE.items()
    for case in table["cases"]
    if not case.get("server")
]


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
