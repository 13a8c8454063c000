"""The generated files are fresh, and the conversion keeps what the API server needs."""

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mark_crds import generate
from mark_crds.eval_run import EvalRun
from mark_crds.job_input import canonical_json
from mark_crds.registered_model import RegisteredModel
from mark_crds.shared import DECIMAL_PATTERN, DecimalText, normal_decimal
from mark_crds.structural import structural_schema
from mark_crds.training_run import TrainingRun
from pydantic import TypeAdapter, ValidationError

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


@settings(max_examples=500)
@given(st.from_regex(DECIMAL_PATTERN.replace("$", r"\Z"), alphabet=st.characters(codec="ascii")).filter(lambda text: len(text) <= 24))
def test_the_one_spelling_of_a_decimal_is_a_decimal_again(text: str) -> None:
    """A number that is written back in its one spelling is read again by every Job of the run."""
    assert TypeAdapter(DecimalText).validate_python(normal_decimal(text)) == normal_decimal(text)


@pytest.mark.parametrize("text", ["99999.123456789012e9", "0.123456789012e-9", "1E-09", "9" * 24])
def test_decimals_at_their_limits(text: str) -> None:
    assert len(TypeAdapter(DecimalText).validate_python(text)) <= 24


@pytest.mark.parametrize("text", ["1e-10", "1e-55", "1e99", "123456e1", "0.1234567890123e-5", "9" * 25])
def test_decimals_beyond_them_are_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(DecimalText).validate_python(text)


def test_canonical_json_refuses_floats() -> None:
    with pytest.raises(TypeError, match="write decimals as text"):
        canonical_json({"a": [0.1]})
