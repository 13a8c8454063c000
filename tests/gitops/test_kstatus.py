"""What Flux's own library makes of a run in every state, over dumps that the operator's decisions made. MARK_REFRESH_GOLDEN=1 writes the dumps anew."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import get_args

import pytest
import yaml
from mark_crds.run import State
from run_states import ODD, STATES, dump

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "states"
PROGRAM = Path(__file__).parent / "kstatus"
BUILD_SECONDS = 580
KINDS = ("TrainingRun", "EvalRun")

# Current means: do not wait any longer. Only what was not planned yet is InProgress; a run of hours must not hold up a sync.
EXPECTED = {
    "Planning": "InProgress",
    "PlanReady": "Current",
    "AwaitingConfirmation": "Current",
    "Queued": "Current",
    "Starting": "Current",
    "Running": "Current",
    "Suspended": "Current",
    "Succeeded": "Current",
    "Adopted": "Current",
    "Failed": "Failed",
    "Cancelled": "Current",
    "Frozen": "Current",
    "InvalidSpec": "Failed",
    "HeldByOtherRun": "Current",
    "RetryLater": "Current",
    "PlanChanged": "Current",
}
DUMPS = [(name, kind) for name in EXPECTED for kind in KINDS]


def path_of(name: str, kind: str) -> Path:
    return GOLDEN / f"{kind.lower()}-{name}.yaml"


def read(name: str, kind: str) -> dict[str, object]:
    found: dict[str, object] = yaml.safe_load(path_of(name, kind).read_text())
    return found


def test_every_state_has_a_dump_and_a_verdict() -> None:
    assert set(STATES) == set(get_args(State)) and set(EXPECTED) == {*STATES, *ODD}
    assert {path.name for path in GOLDEN.iterdir()} == {path_of(*item).name for item in DUMPS}


@pytest.mark.parametrize(("name", "kind"), DUMPS)
def test_a_dump_is_what_the_operator_writes_today(name: str, kind: str) -> None:
    made, path = json.loads(json.dumps(dump(name, kind))), path_of(name, kind)
    if os.environ.get("MARK_REFRESH_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(made, sort_keys=False, width=120))
    assert made == read(name, kind)
    if name in STATES:
        assert made["status"]["state"] == name
    else:
        assert made["status"]["conditions"][2]["reason"] == name


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    if shutil.which("go") is None:
        pytest.skip("go is not there; what Flux's library makes of the states was not asked")
    program = tmp_path_factory.mktemp("kstatus") / "kstatus"
    subprocess.run(["go", "build", "-o", str(program), "."], cwd=PROGRAM, check=True, timeout=BUILD_SECONDS)
    dumps = [read(*item) for item in DUMPS]
    dumps += [_older(read("Succeeded", "TrainingRun")), _unseen(read("PlanReady", "TrainingRun"))]
    done = subprocess.run([str(program)], input=json.dumps(dumps), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = [*DUMPS, ("older generation", "TrainingRun"), ("no status", "TrainingRun")]
    return dict(zip(names, (verdict["status"] for verdict in json.loads(done.stdout)), strict=True))


def _older(run: dict[str, object]) -> dict[str, object]:
    metadata = run["metadata"]
    assert isinstance(metadata, dict)
    return {**run, "metadata": {**metadata, "generation": metadata["generation"] + 1}}


def _unseen(run: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in run.items() if key != "status"}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), DUMPS)
def test_verdict(verdicts: dict[tuple[str, str], str], name: str, kind: str) -> None:
    assert verdicts[name, kind] == EXPECTED[name]


@pytest.mark.slow
def test_a_status_of_an_older_spec_is_in_progress(verdicts: dict[tuple[str, str], str]) -> None:
    assert verdicts["older generation", "TrainingRun"] == "InProgress"


@pytest.mark.slow
def test_what_nobody_has_looked_at(verdicts: dict[tuple[str, str], str]) -> None:
    """The library takes an object without status for a plain one; the example's health checks do not."""
    assert verdicts["no status", "TrainingRun"] == "Current"
