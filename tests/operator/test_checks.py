"""The prerequisites of a plan, and what people are told about each."""

import dataclasses
from decimal import Decimal

import pytest
from mark_operator import quantity
from mark_operator.run.checks import check_all, failures
from mark_operator.seen import Answer, Body, Findings
from run_builders import SETTINGS, all_well, rendering_of, training

GPU = {"resources": {"gpusPerNode": 4}}


def claim(*modes: str, phase: str = "Bound", **metadata: str) -> Answer:
    return Answer("Found", ({"metadata": metadata, "spec": {"accessModes": list(modes)}, "status": {"phase": phase}},))


def quota(**hard: str) -> Answer:
    names = {name.replace("_", "."): value for name, value in hard.items()}
    used = dict.fromkeys(names, "1")
    return Answer(
        "Found", ({"metadata": {"name": "team"}, "spec": {"hard": names}, "status": {"hard": names, "used": used}},)
    )


WAITS = Answer("Found", ({"volumeBindingMode": "WaitForFirstConsumer"},))
FORBIDDEN = Answer("Unknown", message="the operator may not look")
CASES: dict[str, tuple[Body, Body, str, str, str]] = {
    "claim missing": ({}, {"claim": Answer("Missing")}, "claim", "Failed", "create it"),
    "claim forbidden": ({}, {"claim": FORBIDDEN}, "claim", "NotChecked", "may not look"),
    "claim read only": ({}, {"claim": claim("ReadOnlyMany")}, "claim", "Failed", "cannot be written"),
    "claim lost": ({}, {"claim": claim("ReadWriteOnce", phase="Lost")}, "claim", "Failed", "lost its volume"),
    "claim going": ({}, {"claim": claim("ReadWriteOnce", deletionTimestamp="x")}, "claim", "Failed", "being deleted"),
    "claim for many nodes": (
        {"resources": {"nodes": 2, "gpusPerNode": 0}}, {"claim": claim("ReadWriteOnce")}, "claim", "Failed", "ReadWriteMany",
    ),
    "claim that waits": (
        {}, {"claim": claim("ReadWriteOnce", phase="Pending"), "storage_class": WAITS}, "claim", "Passed", "first Pod",
    ),
    "claim pending": ({}, {"claim": claim("ReadWriteOnce", phase="Pending")}, "claim", "NotChecked", "not bound yet"),
    "account missing": ({}, {"service_account": Answer("Missing")}, "serviceAccount", "Failed", "default"),
    "no GPU asked": ({}, {"nodes": Answer("Found")}, "gpu", "Passed", "no stage asks"),
    "no node offers it": (GPU, {"nodes": Answer("Found")}, "gpu", "Failed", "no node offers 4 nvidia.com/gpu"),
    "nodes forbidden": (GPU, {"nodes": FORBIDDEN}, "gpu", "NotChecked", "may not look"),
    "a node offers it": (GPU, {}, "gpu", "Passed", "1 nodes offer 4"),
    "no quota": ({}, {}, "quota", "Passed", "no ResourceQuota"),
    "quota with room": ({}, {"quotas": quota(requests_cpu="100")}, "quota", "Passed", "room"),
    "quota without room": (
        {"resources": {"nodes": 3, "gpusPerNode": 0, "cpu": "4"}},
        {"quotas": quota(requests_cpu="12")},
        "quota", "Failed", "stage lora needs 12 requests.cpu in all its Pods, but ResourceQuota team has 11 left",
    ),
    "quota on GPUs": (
        GPU, {"quotas": Answer("Found", ({"metadata": {"name": "q"}, "spec": {}, "status": {
            "hard": {"requests.nvidia.com/gpu": "4"}, "used": {"requests.nvidia.com/gpu": "2"}}},))},
        "quota", "Failed", "2 left",
    ),
    "quota on memory": (
        {}, {"quotas": quota(limits_memory="16Gi")}, "quota", "Failed", "needs 16Gi limits.memory",
    ),
    "quota with scopes": (
        {}, {"quotas": Answer("Found", ({"metadata": {"name": "q"}, "spec": {"scopes": ["BestEffort"]}},))}, "quota", "NotChecked", "scopes",
    ),
    "image not allowed": ({"image": "elsewhere/evil:1"}, {}, "image", "Failed", "elsewhere/evil:1 is not one of"),
    "job refused": ({}, {"jobs": {"lora": Answer("Refused", message="too long")}}, "job.lora", "Failed", "too long"),
    "pod not checked": ({}, {"pods": {"lora": FORBIDDEN}}, "pod.lora", "NotChecked", "may not look"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_checks(case: str) -> None:
    spec, changes, name, outcome, words = CASES[case]
    checks = {
        check.name: check
        for check in check_all(rendering_of(training(**spec)), dataclasses.replace(all_well(), **changes))
    }
    assert checks[name].outcome == outcome
    assert words in checks[name].message


def test_nothing_fails_when_all_is_well() -> None:
    assert failures(check_all(rendering_of(training(**GPU)), all_well())) == ""


def test_nothing_known_is_nothing_passed_by_luck() -> None:
    outcomes = {check.name: check.outcome for check in check_all(rendering_of(training(**GPU)), Findings())}
    assert {outcomes[name] for name in ("claim", "serviceAccount", "gpu", "quota")} == {"NotChecked"}


def test_missing_gpus_may_come_later_where_the_administrator_says_so() -> None:
    settings = SETTINGS.model_copy(update={"require_gpu_nodes": False})
    findings = dataclasses.replace(all_well(), nodes=Answer("Found"))
    assert failures(check_all(rendering_of(training(**GPU), settings), findings)) == ""


def test_images_may_be_allowed_by_pattern() -> None:
    settings = SETTINGS.model_copy(update={"trainer_images": ("registry.example/ml/*",)})
    checks = check_all(rendering_of(training(image="registry.example/ml/x:1"), settings), all_well())
    assert failures(checks) == ""


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("500m", "0.5"),
        ("2", "2"),
        ("1Ki", "1024"),
        ("64Gi", str(64 * 2**30)),
        ("1k", "1000"),
        ("1.5Gi", str(3 * 2**29)),
    ],
)
def test_quantities(text: str, number: str) -> None:
    assert quantity.parse(text) == Decimal(number)
    assert quantity.parse(quantity.text_of(quantity.parse(text))) == Decimal(number)
