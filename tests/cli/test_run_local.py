"""`mark run --local`: the plan, the two steps, the order of the stages, and how each end is told. The trainer is a tiny process
that behaves like one; tests/contract runs the real one.
"""

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from mark_command import Done, mark
from mark_operator.cli.local import checks

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = Path(__file__).parent / "run.yaml"
COMMAND = (sys.executable, "-c", "from mark_operator.cli.main import main; main()", "run", "--local", "-f", str(SAMPLE))
TINY_TRAINER = ROOT / "tests" / "beds" / "tiny_trainer.py"


@pytest.fixture(autouse=True)
def workspace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder as a claim's: the default of the sample, below the working directory."""
    folder = tmp_path / "mark-workspace"
    for name in ("corpus", "base/tiny-llama"):
        (folder / name).mkdir(parents=True)
    # In the place of the real one, found before it.
    package = tmp_path / "modules" / "mark_trainer"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    shutil.copy(TINY_TRAINER, package / "__main__.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("TINY_TRAINER", raising=False)
    return folder


def manifest(**spec: Any) -> str:
    """The sample with changed fields of the spec, in a file."""
    run = yaml.safe_load(SAMPLE.read_text())
    run["spec"] |= spec
    Path("changed.yaml").write_text(json.dumps(run))
    return "changed.yaml"


def run(*words: str, file: str | Path = SAMPLE) -> Done:
    return mark("run", "--local", "-f", str(file), *words)


def calls(workspace: Path) -> list[dict[str, Any]]:
    """The trainers that were started, in order."""
    path = workspace / "calls.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_the_first_step_shows_the_plan_of_mark_plan_and_starts_nothing(workspace: Path) -> None:
    done = run("-n", "research")
    assert done.code == 0
    offline = yaml.safe_load(mark("plan", "-f", str(SAMPLE), "-n", "research", "-o", "yaml").out)
    assert f"plan {offline['hash']}" in done.out
    assert "Nothing runs until this plan is confirmed:" in done.out
    assert f"mark run --local -f {SAMPLE} --namespace research --confirm" in done.out
    assert calls(workspace) == []


@pytest.mark.slow
def test_the_second_step_runs_preflight_and_all_stages_in_order(workspace: Path) -> None:
    run()
    done = run("--confirm")
    assert done.code == 0, done.err
    assert [call["stage"] for call in calls(workspace)] == ["preflight", "ingest", "dataPrep", "lora", "eval"]
    assert all(
        call["stages"] == ["ingest", "dataPrep", "lora", "eval"] and call["attempt"] == 1 for call in calls(workspace)
    )
    assert "lora:  50 %  step 1/2  loss 1.5" in done.out
    assert "eval: eval did its work" in done.out
    assert "formatVersion" not in done.out


def test_a_confirmation_of_what_nobody_saw_shows_it_and_starts_nothing(workspace: Path) -> None:
    done = run("--confirm")
    assert done.code == 3
    assert "was not seen before" in done.err
    assert "Nothing runs until this plan is confirmed:" in done.out
    assert calls(workspace) == []
    assert run("--confirm", "--stage", "ingest").code == 0


def test_a_changed_manifest_asks_again(workspace: Path) -> None:
    run()
    changed = manifest(lora={"epochs": 4})
    assert run("--confirm", file=changed).code == 3
    assert calls(workspace) == []


def test_switches_are_no_change_and_no_confirmation(workspace: Path) -> None:
    run()
    confirmed = manifest(dryRun=False, confirm=True)
    assert run(file=confirmed).code == 0
    assert calls(workspace) == []
    assert run("--confirm", "--stage", "ingest", file=confirmed).code == 0


def test_a_plan_seen_for_one_stage_confirms_that_stage_only(workspace: Path) -> None:
    run("--stage", "ingest")
    assert run("--confirm").code == 3
    assert run("--stage", "ingest", "--confirm").code == 0
    assert [call["stage"] for call in calls(workspace)] == ["preflight", "ingest"]
    # Preflight looks at the stages that are asked for; the stage itself gets the whole run.
    assert [call["stages"] for call in calls(workspace)] == [["ingest"], ["ingest", "dataPrep", "lora", "eval"]]


def test_the_hash_confirms_the_plan_that_has_it_and_no_other(workspace: Path) -> None:
    plan_hash = yaml.safe_load(mark("plan", "-f", str(SAMPLE), "-o", "yaml").out)["hash"]
    assert run("--confirm", "0" * 12).code == 3
    assert run("--confirm", plan_hash[:4]).code == 2
    assert calls(workspace) == []
    assert run("--stage", "ingest", "--confirm", plan_hash[:12]).code == 0


def test_the_setting_that_asks_for_the_hash_holds_here_too(workspace: Path) -> None:
    Path("settings.yaml").write_text("approval: PlanHash\n")
    run("--settings", "settings.yaml")
    done = run("--settings", "settings.yaml", "--confirm")
    assert (done.code, calls(workspace)) == (2, [])
    assert "asks for the plan's hash" in done.err


def test_a_kept_plan_that_somebody_changed_is_not_run(workspace: Path) -> None:
    run()
    (kept,) = workspace.glob("runs/*/plan.json")
    kept.write_text(kept.read_text().replace('\\"epochs\\":3', '\\"epochs\\":9'))
    done = run("--confirm")
    assert done.code == 3
    assert "somebody changed it" in done.err
    assert calls(workspace) == []


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("data_prep", "no collection pdf_docs: run the ingest stage first"),
        ("lora", "no dataset of contracts-lora: run the data_prep stage first"),
        ("eval", "no adapter of contracts-lora: run the lora stage first"),
    ],
)
def test_what_an_earlier_stage_makes_is_asked_for_by_its_name(workspace: Path, stage: str, words: str) -> None:
    plan = run("--stage", stage)
    assert plan.code == 1
    assert words in plan.out
    done = run("--stage", stage, "--confirm")
    assert done.code == 3
    assert words in done.err
    assert calls(workspace) == []


@pytest.mark.parametrize(
    ("stage", "done", "words"),
    [
        ("reward", (), "no adapter of contracts-lora: run the lora stage first"),
        ("ppo", ("lora",), "no reward model of contracts-lora: run the reward stage first"),
        ("eval", ("lora", "reward"), "no ppo adapter of contracts-lora: run the ppo stage first"),
        ("eval", ("lora", "reward", "ppo"), ""),
    ],
)
def test_what_reward_and_ppo_make_is_asked_for_too(
    workspace: Path, stage: str, done: tuple[str, ...], words: str
) -> None:
    rlhf = {"enabled": True, "reward": {"epochs": 1}, "ppo": {"steps": 1}}
    file = manifest(stages=["dataPrep", "lora", "reward", "ppo", "eval"], rlhf=rlhf)
    run("--stage", stage, file=file)
    (folder,) = (path for path in (workspace / "runs").iterdir())
    (folder / "results").mkdir()
    for earlier in ("dataPrep", *done):
        (folder / "results" / f"{earlier}.json").touch()
    plan = run("--stage", stage, file=file)
    assert (plan.code, words in plan.out) == (1 if words else 0, True), plan.out


@pytest.mark.slow
def test_stages_one_by_one_find_what_the_earlier_ones_left(workspace: Path) -> None:
    for stage in ("ingest", "data_prep", "lora", "eval"):
        run("--stage", stage)
        assert run("--stage", stage, "--confirm").code == 0
        (workspace / "chroma").mkdir(exist_ok=True)
        (workspace / "chroma" / "chroma.sqlite3").touch()
    assert [call["stage"] for call in calls(workspace)][1::2] == ["ingest", "dataPrep", "lora", "eval"]


@pytest.mark.parametrize(
    ("spec", "words", "complaint"),
    [
        ({}, ("--stage", "ppo"), "ppo is not one of the run's stages (ingest, data_prep, lora, eval)"),
        ({}, ("--stage", "tune"), "there is no stage tune"),
        ({"stages": ["ingest"]}, ("--stage", "lora"), "lora is not one of the run's stages (ingest)"),
        ({"lora": {"epochs": 0}}, ("--confirm",), "spec.lora.epochs: is 0, which trains nothing"),
        ({"suspend": True}, ("--confirm",), "spec.suspend: is true"),
        ({"resources": {"nodes": 2}}, ("--confirm",), "--local is one machine"),
        (
            {"stages": ["ingest", "dataPrep", "lora", "reward"], "rlhf": {"reward": {"epochs": 1}}},
            ("--confirm",),
            "spec.rlhf.enabled: is false",
        ),
        (
            {"stages": ["reward"], "rlhf": {"preferences": {"path": "judged.jsonl"}}},
            ("--confirm",),
            "rlhf.preferences.path: there is no file judged.jsonl",
        ),
        ({}, ("--workspace", "nowhere"), "--workspace: there is no folder nowhere"),
        ({"workspace": {"claimName": "other"}}, (), "workspace: there is no folder other"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_in_words(
    workspace: Path, spec: dict[str, Any], words: tuple[str, ...], complaint: str
) -> None:
    file = manifest(**spec)
    run(file=file)
    done = run(*words, file=file)
    assert done.code in (2, 3)
    assert complaint in done.err
    assert calls(workspace) == []


def test_without_the_trainer_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None if name == "mark_trainer" else object())
    assert "pip install '.[trainer]'" in " ".join(run().out.split())


def test_without_local_it_says_what_runs_in_a_cluster() -> None:
    done = mark("run", "-f", str(SAMPLE))
    assert done.code == 2
    assert f"kubectl apply -f {SAMPLE}" in done.err


@pytest.mark.parametrize(
    ("wish", "complaint"),
    [
        ("64", "it will not succeed before that is put right"),
        ("65", "it will not succeed before that is put right"),
        ("70", "another attempt can succeed and goes on from what is kept"),
        ("kill", "was killed by signal 9 (out of memory, perhaps)"),
    ],
)
def test_each_bad_end_is_told_in_words_and_the_rest_is_not_started(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, wish: str, complaint: str
) -> None:
    monkeypatch.setenv("TINY_TRAINER", f"{wish} ingest")
    run()
    done = run("--confirm")
    assert done.code == 1
    assert complaint in done.err
    assert "ingest-1.log" in done.err
    assert [call["stage"] for call in calls(workspace)] == ["preflight", "ingest"]


def test_the_time_limit_of_a_job_holds(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_TRAINER", "wait ingest")
    monkeypatch.setattr("mark_operator.cli.local.trainer._seconds_of", lambda job: 1.0)
    run("--stage", "ingest")
    done = run("--stage", "ingest", "--confirm")
    assert done.code == 1
    assert "took longer than spec.activeDeadlineSeconds" in done.err


@pytest.mark.slow
def test_ctrl_c_keeps_a_checkpoint_and_the_same_command_goes_on(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINY_TRAINER", "wait ingest")
    run("--stage", "ingest")
    command = [*COMMAND, "--stage", "ingest", "--confirm"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        deadline = time.monotonic() + 120
        while len(calls(workspace)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        second = run("--stage", "ingest", "--confirm")
        os.killpg(child.pid, signal.SIGINT)
        out, err = child.communicate(timeout=120)
    assert second.code == 3
    assert "is running already, as process" in second.err
    assert child.returncode == 130, err
    assert "asked to end and kept step 1 of 2" in err
    assert f"to go on: mark run --local -f {SAMPLE} --stage ingest --confirm" in err
    assert "asked to end: it keeps what it has done" in out
    assert run("--stage", "ingest", "--confirm").code == 0
    assert [call["attempt"] for call in calls(workspace) if call["stage"] == "ingest"] == [1, 2]


def test_a_terminal_shows_a_bar_for_each_stage(workspace: Path) -> None:
    run("--stage", "ingest")
    command = [*COMMAND, "--stage", "ingest", "--confirm"]
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    ) as child:
        os.close(theirs)
        shown = b""
        # Linux reports the end of a terminal as an I/O error.
        with contextlib.suppress(OSError):
            while piece := os.read(ours, 65536):
                shown += piece
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert child.returncode == 0, text
    assert re.search(r"preflight +━+ +100%", text)
    assert re.search(r"ingest +━+ +100%", text)
    assert "step 1/2" not in text
    assert "ingest did its work" in text
