"""`mark run --local` with the real trainer, from PDF files to a report on a tiny model; and that nothing of it speaks to a network."""

import contextlib
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from local_run import local_run, write_local_run
from mark_operator.cli.local.progress_lines import Told, read_line
from mark_trainer.progress import Progress
from network_namespace import NO_ROUTE, WIRE, needs_namespaces, run_in_network


def test_the_bars_read_what_the_trainer_prints() -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        progress = Progress("dataPrep")
        progress.report(0, 40)
        progress._last_line = 0.0
        time.sleep(0.01)
        progress.report(10, 40, loss=2.125, tokensPerSecond=12345.6)
        progress.report(40, 40)
    lines = [read_line(line) for line in printed.getvalue().splitlines()]
    assert lines[0] == Told("dataPrep", 0, 40, "")
    assert lines[1] is not None
    assert (lines[1].step, lines[1].rest) == (10, "loss 2.125  tokensPerSecond 1.235e+04  about 1 s left")
    assert lines[-1] == Told("dataPrep", 40, 40, "")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_from_documents_to_a_report_stage_by_stage_with_a_stop_in_between(tmp_path: Path) -> None:
    workspace = write_local_run(tmp_path)
    for stage in ("ingest", "data_prep"):
        plan_and_confirm(tmp_path, "--stage", stage)
    ended("--stage", "lora", folder=tmp_path)
    stop_when(lambda: "lora: " in printed(workspace), "--stage", "lora", "--confirm", folder=tmp_path)
    assert not (workspace / "adapters").exists()
    assert "goes on from" not in printed(workspace)
    stop_when(lambda: steps_done(workspace) > 0, "--stage", "lora", "--confirm", folder=tmp_path)
    assert not (workspace / "adapters").exists()
    kept = steps_done(workspace)
    for stage in ("lora", "eval"):
        done = plan_and_confirm(tmp_path, "--stage", stage)
    assert f"lora: goes on from step-{kept} of" in printed(workspace)
    (report,) = (workspace / "reports").glob("eval_contracts-lora_*.json")
    assert set(json.loads(report.read_text())["scores"]) == {"base", "tuned"}
    assert f"report: {report}" in done.stderr
    again = ended("--stage", "lora", "--confirm", folder=tmp_path)
    assert (again.returncode, "finished this work" in again.stdout) == (0, True), again.stdout + again.stderr


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_from_documents_to_an_adapter_that_a_reward_model_has_judged(tmp_path: Path) -> None:
    """All stages there are: what is evaluated is ppo's adapter, which began as lora's."""
    rlhf = {
        "enabled": True,
        "reward": {"epochs": 1, "rank": 4, "alpha": 8},
        "ppo": {"steps": 1, "rolloutsPerStep": 8, "epochsPerStep": 1, "minibatchSize": 4},
    }
    lora = {"epochs": 1, "rank": 4, "learningRate": "0.01", "gradientAccumulationSteps": 1, "maxLength": 256}
    spec = {
        "stages": ["ingest", "dataPrep", "lora", "reward", "ppo", "eval"],
        "lora": lora,
        "rlhf": rlhf,
        "evaluation": {"maxItems": 4, "maxNewTokens": 96},  # the room for whole sentences behind full prompts
    }
    workspace = write_local_run(tmp_path, **spec)
    plan_and_confirm(tmp_path)
    (report,) = (workspace / "reports").glob("eval_contracts-lora_*.json")
    measured = json.loads(report.read_text())["adapter"]
    made = {path.parent.name: json.loads(path.read_text()) for path in workspace.glob("*/*/manifest.json")}
    ppo = made[measured["digest"]]["provenance"]
    assert made[ppo["rewardModel"]["digest"]]["provenance"]["kind"] == "rewardModel"
    assert made[ppo["rewardModel"]["digest"]]["provenance"]["preferences"]["source"] == "rules"
    assert made[ppo["parent"]["digest"]]["provenance"]["kind"] == "adapter"
    assert made[ppo["rewardModel"]["digest"]]["provenance"]["parent"] == ppo["parent"]


def ended(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(local_run(*words), cwd=folder, capture_output=True, text=True, timeout=1000, check=False)


def plan_and_confirm(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    for confirm in ((), ("--confirm",)):
        done = ended(*words, *confirm, folder=folder)
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def printed(workspace: Path) -> str:
    """What the attempts of the stage lora printed."""
    return "".join(path.read_text() for path in sorted(workspace.glob("runs/*/output/lora-*.log")))


def steps_done(workspace: Path) -> int:
    """The steps of the stage lora that are in its log."""
    return sum(path.read_text().count("gradNorm") for path in workspace.glob("runs/*/logs/metrics.jsonl"))


def stop_when(seen: Callable[[], bool], *words: str, folder: Path) -> None:
    """Ctrl-C once something is seen of the stage lora: it ends with what it has, and says how to go on."""
    with subprocess.Popen(
        local_run(*words), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        while not seen() and child.poll() is None:
            time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=300)
    assert child.returncode == 130, out + err
    assert "lora was asked to end" in err
    assert "to go on: mark run --local -f run.yaml --stage lora --confirm" in err


@pytest.mark.slow
@pytest.mark.timeout(1200)
@needs_namespaces
@pytest.mark.parametrize(
    ("network", "wandb"),
    [(NO_ROUTE, "off"), (WIRE, "offline")],
    ids=["no route, loopback down", "a wire that leads nowhere"],
)
def test_all_stages_run_without_a_network_and_try_none(tmp_path: Path, network: str, wandb: str) -> None:
    """Offline, the tracker's own process, which is no Python, writes its files and is as silent."""
    workspace = write_local_run(tmp_path, wandb)
    plan = run_in_network(network, local_run(), tmp_path)
    assert plan.code == 0, plan.output
    heard = run_in_network(network, local_run("--confirm"), tmp_path)
    assert heard.code == 0, heard.output
    assert "nats" in heard.output or "Measured" in heard.output or "eval:" in heard.output
    assert (heard.packets, heard.attempts) == (0, "")
    assert len(list(workspace.glob("runs/*/logs/wandb/offline-run-*/run-*.wandb"))) == (1 if wandb == "offline" else 0)


@needs_namespaces
def test_an_attempt_of_python_code_is_heard_with_and_without_a_route(tmp_path: Path) -> None:
    knock = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'knock', ('192.0.2.7', 9))"
    on_wire = run_in_network(WIRE, [sys.executable, "-c", knock], tmp_path)
    assert on_wire.packets > 0
    assert "socket.sendto [('192.0.2.7', 9)]" in on_wire.attempts
    nowhere = run_in_network(NO_ROUTE, [sys.executable, "-c", knock], tmp_path)
    assert nowhere.code != 0
    assert "socket.sendto" in nowhere.attempts


@needs_namespaces
def test_an_attempt_of_native_code_is_heard_by_the_wire(tmp_path: Path) -> None:
    heard = run_in_network(WIRE, ["bash", "-c", "echo knock > /dev/udp/192.0.2.7/9"], tmp_path)
    assert heard.packets > 0
    assert heard.attempts == ""
