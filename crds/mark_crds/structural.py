"""Turns a typed model into a structural schema that the API server accepts. It must do no I/O."""

from typing import Any

from mark_crds.model import Model

# Keywords of pydantic's JSON Schema that a structural schema refuses or that say nothing there.
_DROPPED = ("title", "additionalProperties", "$defs")


def structural_schema(model: type[Model]) -> dict[str, Any]:
    """The OpenAPI v3 schema of a model: references inlined, optional fields without null, rules as CEL."""
    definitions: dict[str, type[Model]] = {}
    _collect(model, definitions)
    document = model.model_json_schema(by_alias=True, mode="validation")
    schema = _convert(document, document.get("$defs", {}), definitions, in_list=False)
    return _with_rules(schema, model)


def _collect(model: type[Model], found: dict[str, type[Model]]) -> None:
    found[model.__name__] = model
    for field in model.model_fields.values():
        for inner in _models_in(field.annotation):
            if inner.__name__ not in found:
                _collect(inner, found)


def _models_in(annotation: Any) -> list[type[Model]]:
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return [annotation]
    return [model for inner in getattr(annotation, "__args__", ()) for model in _models_in(inner)]


def _convert(
    node: dict[str, Any], defs: dict[str, Any], models: dict[str, type[Model]], *, in_list: bool
) -> dict[str, Any]:
    if "$ref" in node:
        name = node["$ref"].rsplit("/", 1)[1]
        outer = {key: value for key, value in node.items() if key != "$ref"}
        inlined = {**defs[name], **outer}
        return _with_rules(_convert(inlined, defs, models, in_list=in_list), models[name])
    if "anyOf" in node:
        return _convert(_without_null(node), defs, models, in_list=in_list)
    result = {key: value for key, value in node.items() if key not in _DROPPED}
    if "const" in result:
        result["enum"] = [result.pop("const")]
    if result.get("type") == "object":
        _convert_object(result, node, defs, models, in_list=in_list)
    if result.get("type") == "array":
        result["items"] = _convert(node["items"], defs, models, in_list=True)
        result.setdefault("x-kubernetes-list-type", "atomic")
    if result.get("type") == "integer":
        result.setdefault("format", "int64")
    if in_list or result.get("default", ...) is None:
        result.pop("default", None)
    return result


def _convert_object(
    result: dict[str, Any], node: dict[str, Any], defs: dict[str, Any], models: dict[str, type[Model]], *, in_list: bool
) -> None:
    if "properties" in node:
        result["properties"] = {
            name: _convert(child, defs, models, in_list=in_list) for name, child in node["properties"].items()
        }
        if "default" in node:
            # In full: the API server tries the block's rules on this value before it fills in the fields' own defaults.
            result["default"] = _without_nulls(node["default"])
    else:
        values = node["additionalProperties"]
        result["additionalProperties"] = _convert(values, defs, models, in_list=True)
        result.pop("propertyNames", None)
        result.pop("patternProperties", None)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return value


def _without_null(node: dict[str, Any]) -> dict[str, Any]:
    (kept,) = [option for option in node["anyOf"] if option != {"type": "null"}]
    return {**kept, **{key: value for key, value in node.items() if key not in ("anyOf", "default")}}


def _with_rules(schema: dict[str, Any], model: type[Model]) -> dict[str, Any]:
    if not model.rules or "x-kubernetes-validations" in schema:
        return schema
    return {**schema, "x-kubernetes-validations": [{"rule": rule.cel, "message": rule.message} for rule in model.rules]}
