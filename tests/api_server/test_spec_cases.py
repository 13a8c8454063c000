"""Every row of the table of specs, and every rule on changes, on a real API server."""

import json
from typing import Any

import pytest
from mark_crds.eval_run import EvalRun, EvalRunSpec
from mark_crds.training_run import TrainingRun, TrainingRunSpec
from spec_table import TABLE, laid_over

CASES = [
    pytest.param(kind, case, id=f"{kind}: {case['name']}") for kind, table in TABLE.items() for case in table["cases"]
]


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_spec(api_server, namespace: str, kind: str, case: dict[str, Any]) -> None:
    manifest = laid_over(TABLE[kind]["base"], case.get("set", {}))
    done = api_server.kubectl("create", "-n", namespace, "--validate=strict", "-f", "-", stdin=manifest)
    if "refused" not in case:
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode != 0
    assert case["refused"] in done.stderr


HASH, OTHER_HASH = "a" * 64, "b" * 64
START = {"status": {"startedAt": "2026-01-01T00:00:00Z"}}
CONFIRM = {"spec": {"dryRun": False, "confirm": True}}

# Each row: a name, the spec at first, then (change, words of the refusal or None) one after another; "start" marks the run started.
CHANGES: list[tuple[str, dict[str, Any], list[tuple[Any, str | None]]]] = [
    ("confirm alone", {}, [(CONFIRM, None)]),
    (
        "confirm with who and which",
        {},
        [({"spec": {**CONFIRM["spec"], "confirmPlan": HASH, "confirmedBy": "alice", "suspend": True}}, None)],
    ),
    ("work may change before confirmation", {}, [({"spec": {"lora": {"rank": 8}}}, None), (CONFIRM, None)]),
    (
        "confirm and change at once",
        {},
        [({"spec": {**CONFIRM["spec"], "lora": {"rank": 8}}}, "spec.confirm: the change that confirms")],
    ),
    (
        "confirm and change at once, naming the plan",
        {},
        [({"spec": {**CONFIRM["spec"], "confirmPlan": HASH, "lora": {"rank": 8}}}, None)],
    ),
    (
        "change while confirmed",
        {},
        [(CONFIRM, None), ({"spec": {"lora": {"rank": 8}}}, "spec: a confirmed run keeps its work")],
    ),
    (
        "change while confirmed, naming the new plan",
        {},
        [(CONFIRM, None), ({"spec": {"confirmPlan": HASH, "lora": {"rank": 8}}}, None)],
    ),
    (
        "change while confirmed, keeping the old hash",
        {"confirmPlan": HASH},
        [(CONFIRM, None), ({"spec": {"lora": {"rank": 8}}}, "spec: a confirmed run keeps its work")],
    ),
    (
        "optional field added while confirmed",
        {},
        [(CONFIRM, None), ({"spec": {"queueName": "research"}}, "spec: a confirmed run keeps its work")],
    ),
    (
        "optional field removed while confirmed",
        {"queueName": "research"},
        [(CONFIRM, None), ({"spec": {"queueName": None}}, "spec: a confirmed run keeps its work")],
    ),
    (
        "take back, then change",
        {},
        [(CONFIRM, None), ({"spec": {"confirm": False}}, None), ({"spec": {"lora": {"rank": 8}}}, None)],
    ),
    (
        "back to a dry run needs the confirmation back",
        {},
        [(CONFIRM, None), ({"spec": {"dryRun": True}}, "spec.confirm: true needs spec.dryRun: false")],
    ),
    (
        "suspend after start",
        {},
        [(CONFIRM, None), ("start", None), ({"spec": {"suspend": True}}, None), ({"spec": {"suspend": False}}, None)],
    ),
    ("ttl after start", {}, [(CONFIRM, None), ("start", None), ({"spec": {"ttlSecondsAfterFinished": 60}}, None)]),
    (
        "work after start",
        {},
        [(CONFIRM, None), ("start", None), ({"spec": {"lora": {"rank": 8}}}, "spec: a confirmed run keeps its work")],
    ),
    (
        "work after start, naming a plan",
        {},
        [
            (CONFIRM, None),
            ("start", None),
            ({"spec": {"confirmPlan": OTHER_HASH, "lora": {"rank": 8}}}, "spec: the run has started, so only"),
        ],
    ),
    (
        "another plan after start",
        {},
        [
            (CONFIRM, None),
            ("start", None),
            ({"spec": {"confirmPlan": OTHER_HASH}}, "spec: the run has started; confirm can be taken back"),
        ],
    ),
    (
        "another name after start",
        {"confirmedBy": "alice"},
        [
            (CONFIRM, None),
            ("start", None),
            ({"spec": {"confirmedBy": "bob"}}, "spec: the run has started; confirm can be taken back"),
        ],
    ),
    ("cancel after start", {}, [(CONFIRM, None), ("start", None), ({"spec": {"confirm": False}}, None)]),
    (
        "work while cancelling",
        {},
        [
            (CONFIRM, None),
            ("start", None),
            ({"spec": {"confirm": False, "lora": {"rank": 8}}}, "spec: the run has started, so only"),
        ],
    ),
    (
        "confirm again after cancelling",
        {},
        [
            (CONFIRM, None),
            ("start", None),
            ({"spec": {"confirm": False}}, None),
            (CONFIRM, "spec: the run has started; confirm can be taken back"),
        ],
    ),
]
SPECS = {
    "TrainingRun": ({"lora": {"epochs": 1}}, "trainingrun"),
    "EvalRun": ({}, "evalrun"),
}


def for_kind(kind: str, change: Any) -> Any:
    """The EvalRun's own way to change its work."""
    return (
        json.loads(json.dumps(change).replace('"lora": {"rank": 8}', '"maxItems": 8')) if kind == "EvalRun" else change
    )


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize(("at_first", "steps"), [pytest.param(*row[1:], id=row[0]) for row in CHANGES])
def test_change(
    api_server, namespace: str, kind: str, at_first: dict[str, Any], steps: list[tuple[Any, str | None]]
) -> None:
    own, plural = SPECS[kind]
    manifest = laid_over(TABLE[kind]["base"], {"spec": {**own, **at_first}})
    api_server.must("create", "-n", namespace, "-f", "-", stdin=manifest)
    for change, refusal in steps:
        words = ["patch", plural, "case", "-n", namespace, "--type=merge", "-p"]
        if change == "start":
            api_server.must(*words, json.dumps(START), "--subresource=status")
            continue
        done = api_server.kubectl(*words, json.dumps(for_kind(kind, change)))
        if refusal is None:
            assert done.returncode == 0, done.stderr
        else:
            assert done.returncode != 0, f"accepted: {change}"
            assert refusal in done.stderr


def test_every_rule_is_refused_once() -> None:
    refusals = [case["refused"] for table in TABLE.values() for case in table["cases"] if "refused" in case]
    refusals += [refusal for _, _, steps in CHANGES for _, refusal in steps if refusal]
    for model in (TrainingRun, TrainingRunSpec, EvalRun, EvalRunSpec):
        for rule in model.rules:
            assert any(refusal in rule.message for refusal in refusals), rule.message


def test_applying_a_shorter_list_of_stages_replaces_the_default(api_server, namespace: str) -> None:
    manifest = laid_over(TABLE["TrainingRun"]["base"], {"spec": {"stages": ["ingest"]}})
    api_server.must("apply", "--server-side", "-n", namespace, "-f", "-", stdin=manifest)
    assert (
        api_server.must("get", "trainingrun", "case", "-n", namespace, "-o", "jsonpath={.spec.stages}") == '["ingest"]'
    )


def test_defaults_of_the_api_server_are_those_of_the_models(api_server, namespace: str) -> None:
    for kind, (_, plural) in SPECS.items():
        api_server.must("create", "-n", namespace, "-f", "-", stdin=TABLE[kind]["base"])
        stored = json.loads(api_server.must("get", plural, "case", "-n", namespace, "-o", "json"))["spec"]
        model = {"TrainingRun": TrainingRunSpec, "EvalRun": EvalRunSpec}[kind]
        assert stored == model.model_validate(TABLE[kind]["base"]["spec"]).to_dict()
