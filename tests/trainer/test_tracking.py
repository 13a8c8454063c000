"""Where the measures go and what they mean."""

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_training
import torch
from mark_trainer import lora, tracking
from mark_trainer.failures import UserMistake
from mark_trainer.workspace import Workspace
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerState


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return tiny_training.write_workspace(tmp_path / "workspace")


def logged(workspace: Workspace, uid: str = "run-1") -> list[dict]:
    lines = workspace.path(f"runs/{uid}/logs/{tracking.METRICS_FILE}").read_text().splitlines()
    return [json.loads(line) for line in lines]


def board_of(workspace: Workspace, stage: str) -> EventAccumulator:
    board = EventAccumulator(str(workspace.path(f"runs/run-1/logs/tensorboard/{stage}")))
    board.Reload()
    return board


def keep_steps(workspace: Workspace, stage: str, steps: range) -> None:
    """What an attempt logs that goes on behind the step before the first of these."""
    work = tiny_training.work_of(workspace, tiny_training.job_input(), stage=stage, attempt=steps[0])
    logs = tracking.Logs(work, done=steps[0] - 1)
    for step in steps:
        logs.keep(step, {"loss": step + steps[0] / 10})
    logs.close()


def test_a_new_attempt_takes_the_logs_up_behind_its_checkpoint(workspace: Workspace) -> None:
    """What a killed attempt logged beyond it goes, with the line that it left torn; other stages keep theirs."""
    keep_steps(workspace, "reward", range(1, 9))
    keep_steps(workspace, "lora", range(1, 6))
    with workspace.path(f"runs/run-1/logs/{tracking.METRICS_FILE}").open("a") as file:
        file.write('{"stage": "lora", "step": 1')
    keep_steps(workspace, "lora", range(3, 5))
    lines = [(line["stage"], line["step"], line["attempt"]) for line in logged(workspace)]
    assert lines == [("reward", step, 1) for step in range(1, 9)] + [
        ("lora", step, attempt) for step, attempt in ((1, 1), (2, 1), (3, 3), (4, 3))
    ]
    events = board_of(workspace, "lora").Scalars("lora/loss")
    assert [(event.step, event.value) for event in events] == [
        (step, pytest.approx(value)) for step, value in ((1, 1.1), (2, 2.1), (3, 3.3), (4, 4.3))
    ]
    assert len(board_of(workspace, "reward").Scalars("reward/loss")) == 8


@pytest.mark.parametrize(("name", "peak"), [("NVIDIA H100 80GB HBM3", 989.5), ("NVIDIA GeForce RTX 9999", None)])
def test_mfu_is_told_where_the_peak_is_known(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, name: str, peak: float | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    work = tiny_training.work_of(workspace, tiny_training.job_input())
    reporter = tracking.Reporter(work, [(1000, 1000)], 8_030_000_000, torch.device("cuda"), processes=1)
    step = {"loss": 1.0, "learning_rate": 0.1, "grad_norm": 1.0}
    reporter.on_log(None, TrainerState(global_step=1, max_steps=1), None, step)
    reporter.logs.close()
    (line,) = logged(workspace)
    assert reporter.peak == (pytest.approx(peak, abs=1) if peak else None)
    assert line.get("mfu") == (pytest.approx(line["modelTeraflops"] / peak, rel=1e-3) if peak else None)


@pytest.mark.slow
def test_every_measure_is_in_both_logs(workspace: Workspace) -> None:
    lora.run(tiny_training.work_of(workspace, tiny_training.job_input()))
    steps = [line for line in logged(workspace) if "loss" in line]
    names = {"epoch", "loss", "learningRate", "gradNorm", "tokensPerSecond"}
    names |= {"paddingShare", "memoryGiB", "modelTeraflops"}
    assert {"stage", "step", "attempt", *names} == set(steps[0])
    board = board_of(workspace, "lora")
    for name in names:
        events = board.Scalars(f"lora/{name}")
        assert [event.step for event in events] == [line["step"] for line in steps]
        assert [event.value for event in events] == pytest.approx([line[name] for line in steps], rel=1e-5)
    validation = [line for line in logged(workspace) if "validationLoss" in line]
    assert [event.step for event in board.Scalars("lora/validationLoss")] == [line["step"] for line in validation]
    assert all(math.isfinite(line["validationLoss"]) for line in validation)


@pytest.mark.slow
def test_padding_is_counted_where_there_is_some(workspace: Workspace) -> None:
    lora.run(tiny_training.work_of(workspace, tiny_training.job_input(), uid="packed"))
    lora.run(tiny_training.work_of(workspace, tiny_training.job_input(lora={"packing": False}), uid="padded"))
    assert {line["paddingShare"] for line in logged(workspace, "packed") if "loss" in line} == {0}
    shares = [line["paddingShare"] for line in logged(workspace, "padded") if "loss" in line]
    assert all(0 <= share < 0.5 for share in shares) and max(shares) > 0


def test_flops_are_four_a_token_and_weight(workspace: Workspace) -> None:
    """The published 8B number reads the same: 4 * 8.03e9 weights * 12,473 tokens/s are 401 Tflop/s, 41 % of 989."""
    work = tiny_training.work_of(workspace, tiny_training.job_input())
    reporter = tracking.Reporter(work, [(1, 1)], 8_030_000_000, torch.device("cpu"), processes=1)
    reporter.logs.close()
    teraflops = reporter.flops_a_token * 12_473 / 1e12
    assert teraflops == pytest.approx(401, abs=1) and teraflops / 989 == pytest.approx(0.41, abs=0.005)


@pytest.mark.slow
def test_weights_and_biases_offline(workspace: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    """The real client, whose files hold what was logged; it opens no connection, so it works without a network."""
    from wandb.proto.wandb_internal_pb2 import Record

    tracker = {"wandb": {"mode": "offline", "project": "contracts"}}
    with caplog.at_level(logging.WARNING):
        lora.run(tiny_training.work_of(workspace, tiny_training.job_input(tracking=tracker)))
    (file,) = workspace.path("runs/run-1/logs").glob("wandb/offline-run-*/run-*.wandb")
    histories = [Record.FromString(data).history for data in records(file.read_bytes())]
    items = [item for history in histories for item in history.item]
    losses = [float(json.loads(item.value_json)) for item in items if "lora/loss" in (item.key, *item.nested_key)]
    steps = [line for line in logged(workspace) if "loss" in line]
    assert losses == [line["loss"] for line in steps]


def records(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log behind a header of 7 bytes: blocks of 32 KiB, each piece led by checksum, length, kind."""
    block, header, place, record = 32768, 7, 7, b""
    while place + header <= len(data):
        if block - place % block < header:
            place += block - place % block
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        record += data[place + header : place + header + length]
        place += header + length
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


def test_online_without_a_key_is_the_users_to_mend(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(workspace.root))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    tracker = {"wandb": {"mode": "online", "secretName": "tracker"}}
    work = tiny_training.work_of(workspace, tiny_training.job_input(tracking=tracker))
    with pytest.raises(UserMistake, match=r"tracking\.wandb"):
        tracking.start_wandb(work, work.run_folder)
