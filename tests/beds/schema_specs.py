"""Manifests made from a CRD's structural schema alone: valid ones, and each with one mistake at a known field. It must not import the typed models."""

import copy
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

Body = dict[str, Any]
Schema = dict[str, Any]
CRDS = Path(__file__).parents[2] / "crds"
# Numbers and texts stay small enough for a cluster of paper; the schema's own limits are what the mistakes go beyond.
MOST_ITEMS = 3
LONGEST_TEXT = 40
STAGES = ("ingest", "dataPrep", "lora", "reward", "ppo", "eval")


def spec_schema(plural: str) -> Schema:
    crd = yaml.safe_load((CRDS / f"{plural}.yaml").read_text())
    schema: Schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return schema


def values(schema: Schema) -> st.SearchStrategy[Any]:
    """Every value that a schema allows, rules across fields apart."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match schema["type"]:
        case "boolean":
            return st.booleans()
        case "integer":
            low = schema.get("minimum", 0)
            return st.integers(low, schema.get("maximum", low + 1000))
        case "string":
            return _texts(schema)
        case "array":
            most = min(schema.get("maxItems", MOST_ITEMS), MOST_ITEMS)
            return st.lists(values(schema["items"]), min_size=schema.get("minItems", 0), max_size=most)
        case "object" if "properties" in schema:
            return _objects(schema)
        case "object":
            return st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), values(schema["additionalProperties"]), max_size=2)
    raise AssertionError(f"a type without a maker: {schema['type']}")


def _texts(schema: Schema) -> st.SearchStrategy[str]:
    low, high = schema.get("minLength", 0), min(schema.get("maxLength", LONGEST_TEXT), 64)
    if "pattern" in schema:
        found = st.from_regex(schema["pattern"].replace("$", r"\Z"), fullmatch=True, alphabet=st.characters(codec="ascii"))
        return found.filter(lambda text: low <= len(text) <= high)
    return st.text(st.characters(codec="ascii", categories=("Ll", "Nd")), min_size=low, max_size=min(high, LONGEST_TEXT))


def _objects(schema: Schema) -> st.SearchStrategy[Body]:
    makers = {name: values(inner) for name, inner in schema["properties"].items()}
    required = {name: makers.pop(name) for name in schema.get("required", ())}
    return st.fixed_dictionaries(required, optional=makers)


def drawn(plural: str, count: int) -> list[Body]:
    """So many specs that the schema allows, always the same ones. They are drawn in a process of its own, since Hypothesis is led by constants of all modules that are loaded."""
    command = [sys.executable, __file__, plural, str(count)]
    found: list[Body] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


def _draw(plural: str, count: int) -> list[Body]:
    found: list[Body] = []

    @settings(max_examples=count, derandomize=True, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(values(spec_schema(plural)))
    def collect(spec: Body) -> None:
        found.append(spec)

    collect()
    return found


def obeying(spec: Body, plural: str) -> Body:
    """The spec bent until it obeys the rules across fields that the schema tells in CEL."""
    spec = copy.deepcopy(spec)
    _one_of_each(spec)
    if plural == "evalruns":
        model = spec["model"]
        chosen = next((key for key in ("name", "path") if key in model), "auto")
        spec["model"] = {chosen: model.get(chosen, True)} if chosen != "auto" else {"auto": True}
        if chosen == "auto":
            spec.setdefault("baseModel", {"path": "base/tiny"})
        metrics = spec.get("metrics", ["exactMatch", "f1", "rougeL", "bleu"])
        rag = spec.get("rag", {}).get("enabled", True)
        criteria = [item for item in spec.get("pass", ()) if item["metric"] in metrics and (rag or item["condition"] == "closedBook")]
        spec["pass"] = criteria
    else:
        _bend_training(spec)
    if spec.get("confirm"):
        spec["dryRun"] = False
    return spec


def _one_of_each(spec: Body) -> None:
    base = spec.get("baseModel")
    if base is not None:
        spec["baseModel"] = {"path": base["path"]} if "path" in base else {"path": "base/tiny"}
        if "huggingFaceId" in base and "revision" in base:
            spec["baseModel"] = {"huggingFaceId": base["huggingFaceId"], "revision": base["revision"]}


def _bend_training(spec: Body) -> None:
    stages = [stage for stage in STAGES if stage in spec.get("stages", ("dataPrep", "lora"))]
    if spec.get("confirm") and "reward" not in stages and "ppo" in stages:
        stages.remove("ppo")
    if "eval" in stages and not {"lora", "ppo"} & set(stages):
        stages.remove("eval")
    spec["stages"] = stages or ["dataPrep"]
    if set(spec["stages"]) - {"ingest", "dataPrep"}:
        spec.setdefault("baseModel", {"path": "base/tiny"})
    if "dataPrep" in spec["stages"]:
        spec.pop("dataset", None)
    elif {"lora", "reward", "ppo", "eval"} & set(spec["stages"]):
        spec.setdefault("dataset", {"path": "datasets/abc"})
    ingest = spec.get("ingest", {})
    ingest["chunkOverlapCharacters"] = min(ingest.get("chunkOverlapCharacters", 100), ingest.get("chunkCharacters", 800) // 2)
    spec["ingest"] = ingest
    _within(spec.get("dataPrep", {}), "validationFraction", "0.25", lambda number: 0 < number < 1)
    _within(spec.get("dataPrep", {}), "unanswerableFraction", "0.1", lambda number: number <= 0.5)
    _within(spec.get("lora", {}), "dropout", "0.1", lambda number: number < 1)
    _within(spec.get("lora", {}), "learningRate", "1e-4", lambda number: 0 < number <= 1)
    _bend_rlhf(spec.get("rlhf", {}))
    tracking = spec.get("tracking", {}).get("wandb", {})
    if tracking.get("mode") == "online":
        tracking.setdefault("secretName", "tracking-key")
    if spec.get("confirm"):
        spec.setdefault("lora", {})["epochs"] = max(1, spec.get("lora", {}).get("epochs", 1))
        for block, field in (("reward", "epochs"), ("ppo", "steps")):
            changed = spec.setdefault("rlhf", {}).setdefault(block, {})
            changed[field] = max(1, changed.get(field, 1))
        spec["rlhf"]["enabled"] = True


def _bend_rlhf(rlhf: Body) -> None:
    reward, ppo = rlhf.get("reward", {}), rlhf.get("ppo", {})
    _within(reward, "dropout", "0.1", lambda number: number < 1)
    _within(reward, "learningRate", "1e-4", lambda number: 0 < number <= 1)
    _within(ppo, "learningRate", "1e-5", lambda number: 0 < number <= 1)
    _within(ppo, "klCoefficient", "0.05", lambda number: number <= 100)
    _within(ppo, "clipRange", "0.2", lambda number: 0 < number < 1)
    _within(ppo, "valueClipRange", "0.2", lambda number: 0 < number <= 100)
    _within(ppo, "valueCoefficient", "0.1", lambda number: 0 < number <= 100)
    _within(ppo, "discount", "1", lambda number: 0 < number <= 1)
    _within(ppo, "gaeLambda", "0.95", lambda number: number <= 1)
    _within(ppo, "temperature", "0.7", lambda number: 0 < number <= 10)
    _within(ppo, "missingStopPenalty", "1", lambda number: number <= 1000)
    if "rolloutsPerStep" in ppo or "minibatchSize" in ppo:
        ppo["rolloutsPerStep"] = ppo.get("minibatchSize", 8)


def _within(block: Body, name: str, otherwise: str, holds: Any) -> None:
    if name in block and not holds(float(block[name])):
        block[name] = otherwise


@dataclass(frozen=True)
class Mistake:
    """A manifest's spec with one mistake, and the path to it, which the refusal must name."""

    spec: Body
    field: str
    what: str


def mistakes(spec: Body, schema: Schema, dice: random.Random) -> Mistake:
    """The spec with one mistake of its own schema's making, at any depth."""
    spots = list(_spots((), spec, schema))
    path, inner = dice.choice(spots)
    what, value = dice.choice(list(_wrong(inner)))
    place = ".".join(("spec", *path, *(("surprise",) if what == "unknown field" else ())))
    return Mistake(_with(spec, path, value), place, f"{what} at {place}")


def _spots(path: tuple[str, ...], value: Body, schema: Schema) -> Iterator[tuple[tuple[str, ...], Schema]]:
    """Every field of the schema that the value has, or may have, and that is not inside a list."""
    for name, inner in schema["properties"].items():
        here = (*path, name)
        yield here, inner
        if inner["type"] == "object" and "properties" in inner and isinstance(value.get(name), dict):
            yield from _spots(here, value[name], inner)


def _wrong(schema: Schema) -> Iterator[tuple[str, Any]]:
    kind = schema["type"]
    yield "wrong type", {"boolean": "yes", "integer": "many", "string": 7, "array": "all", "object": "x"}[kind]
    yield "wrong type", {"boolean": 1, "integer": 1.5, "string": ["x"], "array": {"a": 1}, "object": [1]}[kind]
    if kind == "integer" and "maximum" in schema:
        yield "too large", schema["maximum"] + 1
        yield "too small", schema["minimum"] - 1
    if "enum" in schema:
        yield "no choice", "surprise"
    if kind == "string" and "maxLength" in schema and "enum" not in schema:
        yield "too long", "a" * (schema["maxLength"] + 1)
    if "pattern" in schema:
        yield "wrong form", "No! Not\nthis"
    if kind == "array" and "maxItems" in schema:
        item = schema["items"]
        yield "too many", [_any(item)] * (schema["maxItems"] + 1)
    if kind == "object" and "properties" in schema:
        yield "unknown field", {"surprise": 1}


def _any(schema: Schema) -> Any:
    if "enum" in schema:
        return schema["enum"][0]
    if schema["type"] == "object":
        return {name: _any(schema["properties"][name]) for name in schema.get("required", ())}
    return "a"


def _with(spec: Body, path: tuple[str, ...], value: Any) -> Body:
    changed = copy.deepcopy(spec)
    place = changed
    for name in path[:-1]:
        place = place[name]
    if isinstance(value, dict) and "surprise" in value and isinstance(place.get(path[-1]), dict):
        value = {**place[path[-1]], **value}
    place[path[-1]] = value
    return changed


if __name__ == "__main__":
    print(json.dumps(_draw(sys.argv[1], int(sys.argv[2]))))
