"""Several processes of one stage: who is who, how they start and end, and that together they learn what one would."""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_training
import torch
from mark_crds.job_input import JobInput
from mark_crds.stages import Distributed
from mark_trainer import lora, ranks
from mark_trainer.ranks import Rank
from mark_trainer.workspace import Workspace, write_json
from safetensors.torch import load_file

TOGETHER = {"lora": {"dropout": "0", "batchSize": 4, "gradientAccumulationSteps": 1, "epochs": 3}, "stages": ["lora"]}


def job_of(nodes: int, gpus: int = 0, **changes: Any) -> JobInput:
    return tiny_training.job_input(**{**TOGETHER, "nodes": nodes, "gpusPerNode": gpus, **changes})


def test_one_process_needs_no_variables() -> None:
    assert ranks.variables(job_of(1), {}) == []
    assert ranks.variables(job_of(1, gpus=1), {}) == []
    assert Rank.here({}) == Rank() and Rank().first and Rank().alone


def test_ranks_are_numbered_node_by_node() -> None:
    environment = {
        "JOB_COMPLETION_INDEX": "1",
        "MASTER_ADDR": "contracts-t-lora-1-0.t-contracts",
        "MASTER_PORT": "29500",
    }
    found = ranks.variables(job_of(3, gpus=2), environment)
    assert [Rank.here(variables) for variables in found] == [Rank(2, 6, 0), Rank(3, 6, 1)]
    assert {variables["MASTER_ADDR"] for variables in found} == {"contracts-t-lora-1-0.t-contracts"}


def test_a_node_without_gpus_has_one_process() -> None:
    (variables,) = ranks.variables(job_of(2), {"JOB_COMPLETION_INDEX": "1", "MASTER_ADDR": "a"})
    assert Rank.here(variables) == Rank(index=1, processes=2, local_index=0)


def python(code: str) -> tuple[list[str], dict[str, str]]:
    return [sys.executable, "-c", code], dict(os.environ)


def test_all_well_is_zero() -> None:
    assert ranks.supervise([python("pass"), python("pass")]) == 0


@pytest.mark.parametrize(("ending", "code"), [("exit(75)", 75), ("import os; os.kill(os.getpid(), 9)", 137)])
def test_the_first_failure_ends_the_others(monkeypatch: pytest.MonkeyPatch, ending: str, code: int) -> None:
    monkeypatch.setattr(ranks, "SECONDS_TO_END", 0.5)
    begun = time.monotonic()
    assert ranks.supervise([python("import time; time.sleep(60)"), python(ending)]) == code
    assert time.monotonic() - begun < 30


def test_sigterm_reaches_every_process() -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: exit(75)); time.sleep(60)"
    parent = multiprocessing.get_context("fork").Process(
        target=lambda: os._exit(ranks.supervise([python(code), python(code)]))
    )
    parent.start()
    time.sleep(3)
    os.kill(parent.pid, signal.SIGTERM)
    parent.join(40)
    assert parent.exitcode == 75


def test_sigterm_while_they_start_reaches_every_process() -> None:
    """It comes between the first child's start and the second's: both end by it, and the parent waits for them."""

    def started_slowly() -> Iterator[tuple[list[str], dict[str, str]]]:
        yield python("import time; time.sleep(60)")
        os.kill(os.getpid(), signal.SIGTERM)
        yield python("import time; time.sleep(60)")

    parent = multiprocessing.get_context("fork").Process(target=lambda: os._exit(ranks.supervise(started_slowly())))
    parent.start()
    parent.join(40)
    assert parent.exitcode == 128 + signal.SIGTERM


# ---------------------------------------------------------------------------------------------------------------------
# Whole trainings by two processes, as two Pods of one process each.


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return tiny_training.write_workspace(tmp_path / "workspace")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start(workspace: Workspace, job: JobInput, uid: str, attempt: int = 1) -> list[subprocess.Popen[bytes]]:
    """The Pods' processes: the very command, each in a fresh process, because torch's threads do not survive a fork."""
    folder, port = workspace.root.parent, free_port()
    write_json(folder / f"{uid}.json", job.to_dict())

    def pod(index: int) -> subprocess.Popen[bytes]:
        variables = {"JOB_COMPLETION_INDEX": str(index), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        arguments = ["run", "--stage", "lora", "--run-uid", uid, "--attempt", str(attempt)]
        places = ["--input", str(folder / f"{uid}.json"), "--workspace", str(workspace.root)]
        message = ["--termination-message", str(folder / f"{uid}-{index}.message")]
        command = [sys.executable, "-m", "mark_trainer", *arguments, *places, *message]
        return subprocess.Popen(command, env={**os.environ, **variables})

    return [pod(index) for index in range(job.nodes)]


def ended(pods: list[subprocess.Popen[bytes]]) -> list[int]:
    try:
        return [process.wait(240) for process in pods]
    finally:
        for process in pods:
            process.kill()


def result_of(workspace: Workspace, uid: str, index: int = 0) -> dict[str, Any]:
    return json.loads((workspace.root.parent / f"{uid}-{index}.message").read_text())


def adapter_of(workspace: Workspace, uid: str) -> dict[str, torch.Tensor]:
    (artifact,) = result_of(workspace, uid)["artifacts"]
    return load_file(workspace.path(artifact["path"]) / "adapter_model.safetensors")


def losses_of(workspace: Workspace, uid: str) -> list[float]:
    lines = workspace.path(f"runs/{uid}/logs/metrics.jsonl").read_text().splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


def assert_learned_the_same(workspace: Workspace, one: str, other: str) -> None:
    assert losses_of(workspace, one) == pytest.approx(losses_of(workspace, other), abs=2e-4)
    first, second = adapter_of(workspace, one), adapter_of(workspace, other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], atol=2e-4, rtol=1e-2)


@pytest.mark.slow
def test_two_processes_learn_what_one_with_twice_the_rows_would(workspace: Workspace) -> None:
    assert ended(start(workspace, job_of(2), "two")) == [0, 0]
    twice = {**TOGETHER["lora"], "gradientAccumulationSteps": 2}
    assert ended(start(workspace, job_of(1, lora=twice), "one")) == [0]
    assert_learned_the_same(workspace, "two", "one")
    assert result_of(workspace, "two")["reason"] == "Trained"
    assert result_of(workspace, "two", index=1)["reason"] == "TookPart"
    assert len(losses_of(workspace, "two")) == 12


@pytest.mark.slow
def test_two_processes_stop_together_and_go_on_bit_for_bit(workspace: Workspace) -> None:
    """Only one of them hears SIGTERM; dropout is on, so both random number generators must be kept."""
    job = job_of(2, lora={**TOGETHER["lora"], "dropout": "0.1", "epochs": 24})
    assert ended(start(workspace, job, "straight")) == [0, 0]
    straight = adapter_of(workspace, "straight")
    pods = start(workspace, job, "halting")
    logs = workspace.path("runs/halting/logs/metrics.jsonl")
    while not logs.exists() or logs.read_text().count("gradNorm") < 3:
        time.sleep(0.02)
        assert pods[0].poll() is None
    os.kill(pods[1].pid, signal.SIGTERM)
    assert ended(pods) == [75, 75]
    assert result_of(workspace, "halting")["reason"] == "StoppedAfterCheckpoint"
    assert ended(start(workspace, job, "halting", attempt=2)) == [0, 0]
    halting = adapter_of(workspace, "halting")
    assert all(torch.equal(value, halting[name]) for name, value in straight.items())
    assert len(losses_of(workspace, "halting")) == len(losses_of(workspace, "straight"))


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_all_at_once(workspace: Workspace) -> None:
    """One of them alone has the row: both say so, and none waits for the other."""
    tiny_training.poison(workspace, "train")
    assert ended(start(workspace, job_of(2), "poisoned")) == [64, 64]
    assert {result_of(workspace, "poisoned", index)["reason"] for index in range(2)} == {"LossNotFinite"}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="DeepSpeed builds a part of itself where there are no GPUs")
def test_deepspeed_learns_what_ddp_does(workspace: Workspace) -> None:
    """ZeRO shares gradients and optimizer (2), and weights too (3), out among two processes; the sums stay the same."""
    assert ended(start(workspace, job_of(2), "ddp")) == [0, 0]
    whole = adapter_of(workspace, "ddp")
    for strategy in ("deepspeedZero2", "deepspeedZero3"):
        assert ended(start(workspace, job_of(2, distributed={"strategy": strategy}), strategy)) == [0, 0]
        shared_out = adapter_of(workspace, strategy)
        assert shared_out.keys() == whole.keys()
        for name, value in whole.items():
            torch.testing.assert_close(shared_out[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_deepspeed_without_gpus_and_compiler_is_refused(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-compiler")
    assert ended(start(workspace, job_of(2, distributed={"strategy": "deepspeedZero2"}), "zero")) == [64, 64]
    assert result_of(workspace, "zero")["reason"] == "NoDeepSpeedOnCpu"
    assert not workspace.path("adapters").exists()


def test_the_settings_of_deepspeed_follow_the_strategy() -> None:
    assert lora.deepspeed_settings(Distributed()) is None
    for strategy, stage in (("deepspeedZero2", 2), ("deepspeedZero3", 3)):
        settings = lora.deepspeed_settings(Distributed(strategy=strategy))
        assert settings is not None and settings["zero_optimization"]["stage"] == stage
