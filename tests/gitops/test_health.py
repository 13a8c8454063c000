"""Argo CD's Lua script and Flux's CEL expressions in manifests/gitops, run by the interpreters that those tools use, over every state."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from mark_crds.run import State
from mark_operator.conditions import conditions_of, merge
from mark_operator.messages import Note

EXAMPLES = Path(__file__).resolve().parents[2] / "manifests" / "gitops"
PROGRAM = Path(__file__).parent / "health"
DUMPS = Path(__file__).resolve().parents[1] / "golden" / "states"
BUILD_SECONDS = 580
NOW = "2026-01-01T00:00:00Z"

EXPECTED: dict[str, tuple[str, str]] = {
    "Planning": ("Progressing", "InProgress"),
    "PlanReady": ("Healthy", "Current"),
    "AwaitingConfirmation": ("Suspended", "Current"),
    "Queued": ("Progressing", "Current"),
    "Starting": ("Progressing", "Current"),
    "Running": ("Progressing", "Current"),
    "Suspended": ("Suspended", "Current"),
    "Succeeded": ("Healthy", "Current"),
    "Adopted": ("Healthy", "Current"),
    "Failed": ("Degraded", "Failed"),
    "Cancelled": ("Healthy", "Current"),
}
# Beside the states: what was not looked at yet, and a spec that must be edited.
SPECIAL = {
    "no status": ("Progressing", "InProgress"),
    "older generation": ("Progressing", "InProgress"),
    "spec to edit": ("Degraded", "Failed"),
}


def run(state: State, *, stalled: bool = False, observed: int = 1) -> dict[str, Any]:
    new = conditions_of(state, Note("Why", "What happened."), stalled=stalled)
    conditions = [item.to_dict() for item in merge((), new, now=NOW, generation=observed)]
    status = {"state": state, "observedGeneration": observed, "conditions": conditions}
    return {"metadata": {"name": "a", "generation": observed}, "spec": {}, "status": status}


def objects() -> dict[str, dict[str, Any]]:
    older = run("Succeeded")
    older["metadata"]["generation"] = 2
    special = {
        "no status": {"metadata": {"name": "a", "generation": 1}, "spec": {}},
        "older generation": older,
        "spec to edit": run("Planning", stalled=True),
    }
    return {**{state: run(state) for state in get_args(State)}, **special, **dumps()}


def dumps() -> dict[str, dict[str, Any]]:
    """Runs of both kinds as the operator's decisions made them, by file name."""
    return {path.stem: yaml.safe_load(path.read_text()) for path in sorted(DUMPS.iterdir())}


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    if shutil.which("go") is None:
        pytest.skip("go is not there; the health checks of Argo CD and Flux were not run")
    program = tmp_path_factory.mktemp("health") / "health"
    subprocess.run(["go", "build", "-o", str(program), "."], cwd=PROGRAM, check=True, timeout=BUILD_SECONDS)
    checks = yaml.safe_load((EXAMPLES / "flux" / "kustomization.yaml").read_text())["spec"]["healthCheckExprs"]
    expressions = {key: checks[0][key] for key in ("inProgress", "failed", "current")}
    asked = {
        "lua": (EXAMPLES / "argo-cd" / "health.lua").read_text(),
        **expressions,
        "objects": list(objects().values()),
    }
    done = subprocess.run([str(program)], input=json.dumps(asked), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(zip(objects(), json.loads(done.stdout), strict=True))


def test_every_state_is_expected() -> None:
    assert set(EXPECTED) == set(get_args(State))


def test_both_kinds_have_the_same_expressions() -> None:
    checks = yaml.safe_load((EXAMPLES / "flux" / "kustomization.yaml").read_text())["spec"]["healthCheckExprs"]
    assert [check.pop("kind") for check in checks] == ["TrainingRun", "EvalRun"]
    assert checks[0] == checks[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*EXPECTED, *SPECIAL])
def test_verdict(verdicts: dict[str, dict[str, str]], name: str) -> None:
    found = verdicts[name]
    assert (found["lua"], found["cel"]) == {**EXPECTED, **SPECIAL}[name]
    assert found["message"]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in DUMPS.iterdir()))
def test_verdict_on_what_the_operator_writes(verdicts: dict[str, dict[str, str]], name: str) -> None:
    status = dumps()[name]["status"]
    stalled = any(item["type"] == "Stalled" and item["status"] == "True" for item in status["conditions"])
    expected = SPECIAL["spec to edit"] if stalled else EXPECTED[status["state"]]
    assert (verdicts[name]["lua"], verdicts[name]["cel"]) == expected
