"""The generated files are fresh, and the conversion keeps what the API server needs."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mark_crds import generate
from mark_crds.eval_run import EvalRun
from mark_crds.job_input import canonical_json
from mark_crds.registered_model import RegisteredModel
from mark_crds.shared import normal_decimal
from mark_crds.structural import structural_schema
from mark_crds.training_run import TrainingRun

REFUSED_KEYWORDS = {"$ref", "$defs", "anyOf", "title", "const", "exclusiveMinimum", "exclusiveMaximum", "propertyNames"}
KINDS = [TrainingRun, EvalRun, RegisteredModel]


def nodes(schema: dict, path: str = ""):
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from nodes(schema["additionalProperties"], f"{path}{{}}")


@pytest.mark.parametrize("kind", KINDS)
def test_schema_is_structural(kind) -> None:
    for path, node in nodes(structural_schema(kind)):
        assert not REFUSED_KEYWORDS & node.keys(), path
        assert "type" in node, path
        assert not ("properties" in node and "additionalProperties" in node), path


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_has_a_description_and_every_list_and_text_a_limit(kind) -> None:
    for path, node in nodes(structural_schema(kind)):
        if path and not path.endswith(("[]", "{}")):
            assert node.get("description"), path
        if node["type"] == "array":
            assert "maxItems" in node, path
        if node["type"] == "string":
            assert "maxLength" in node or "enum" in node, path
        if node["type"] == "object" and "properties" not in node:
            assert "maxProperties" in node, path


@pytest.mark.parametrize("kind", KINDS)
def test_no_default_inside_a_list_item(kind) -> None:
    """Such defaults make GitOps tools see drift for ever."""
    for path, node in nodes(structural_schema(kind)):
        if "[]" in path:
            assert "default" not in node, path


def test_generated_files_are_fresh() -> None:
    stale = [str(path) for path, text in generate.files().items() if not path.exists() or path.read_text() != text]
    assert stale == [], "run make generate"


@pytest.mark.parametrize(
    ("text", "normal"),
    [("2e-4", "0.0002"), ("0.00020", "0.0002"), ("0.0002", "0.0002"), ("1", "1"), ("10", "10"), ("1E2", "100"), ("0.50", "0.5"), ("0", "0"), ("0.0", "0")],
)
def test_decimals_have_one_spelling(text: str, normal: str) -> None:
    assert normal_decimal(text) == normal


@given(st.integers(0, 10**9), st.integers(-12, 12))
def test_normal_decimal_keeps_the_value_and_is_stable(digits: int, exponent: int) -> None:
    normal = normal_decimal(f"{digits}e{exponent}")
    assert Decimal(normal) == Decimal(f"{digits}e{exponent}")
    assert normal_decimal(normal) == normal


def test_canonical_json_refuses_floats() -> None:
    with pytest.raises(TypeError, match="write decimals as text"):
        canonical_json({"a": [0.1]})
