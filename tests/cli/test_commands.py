"""Commands that need no cluster: help, offline plans, and what is said when something is wrong."""

from pathlib import Path

import pytest
import yaml
from mark_command import mark
from mark_operator.cli.main import mark as group

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = Path(__file__).parent / "run.yaml"


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))


def changed(tmp_path: Path, *replacements: tuple[str, str]) -> Path:
    text = SAMPLE.read_text()
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("command", sorted(group.commands))
def test_every_command_has_help_with_an_example(command: str) -> None:
    done = mark(command, "--help")
    assert done.code == 0
    assert f"mark {command}" in done.out.split("Examples:")[1]


def test_help_names_the_exit_codes() -> None:
    assert "Exit codes:" in mark("--help").out


def test_an_offline_plan_shows_stages_hash_and_the_command() -> None:
    done = mark("plan", "-f", str(SAMPLE), "-n", "research")
    assert done.code == 0
    (plan_hash,) = [line.split()[1] for line in done.out.splitlines() if line.startswith("plan ")]
    assert f"mark confirm contracts-lora -n research --plan {plan_hash}" in done.out
    assert "3 epochs, rank 16, learning rate 0.0002" in done.out


def test_the_hash_follows_namespace_and_settings_and_nothing_else(tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("trainerImage: localhost/mark-trainer:other\n")
    respelled = changed(tmp_path, ('"2e-4"', '"0.00020"'))
    words = {
        "same": ("-f", str(SAMPLE), "-n", "a"),
        "respelled": ("-f", str(respelled), "-n", "a"),
        "namespace": ("-f", str(SAMPLE), "-n", "b"),
        "settings": ("-f", str(SAMPLE), "-n", "a", "--settings", str(settings)),
    }
    hashes = {name: yaml.safe_load(mark("plan", *w, "-o", "yaml").out)["hash"] for name, w in words.items()}
    assert hashes["same"] == hashes["respelled"]
    assert len(set(hashes.values())) == 3


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (
            '"2e-4"',
            "2e-4",
            'spec.lora.learningRate: is the bare number 2e-4; write it in quotes, as text: learningRate: "2e-4"',
        ),
        (
            '"0.05"',
            "0.050",
            'spec.lora.dropout: is the bare number 0.050; write it in quotes, as text: dropout: "0.050"',
        ),
        ("rank: 16", "rnak: 16", "spec.lora.rnak: there is no such field"),
        ("epochs: 3", "epochs: -1", "spec.lora.epochs: input should be greater than or equal to 0, but is -1"),
        ("spec:\n", "spec:\n  confirm: true\n", "spec.confirm: true needs spec.dryRun: false"),
        ("lora, eval]", "eval, lora]", "spec.stages: list each stage once and in this order"),
        ("  workspace:\n    claimName: mark-workspace", "  queueName: x", "spec.workspace: is missing"),
    ],
    ids=["bare decimal", "bare fraction", "unknown field", "negative", "dry run confirmed", "order", "missing"],
)
def test_a_wrong_spec_is_answered_with_field_and_cure(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    done = mark("plan", "-f", str(changed(tmp_path, (old, new))))
    assert done.code == 2
    assert complaint in done.err
    assert done.out == ""


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("plan",), "name a run, or a manifest with -f"),
        (("plan", "-f", "/nowhere.yaml"), "/nowhere.yaml: cannot be read"),
        (("plan", "-f", str(ROOT / "Makefile")), "is no YAML"),
        (("plan", "-f", str(ROOT / "pyproject.toml")), "is no YAML"),
        (("plan", "-f", str(ROOT / "manifests/samples/model.yaml")), "holds no TrainingRun and no EvalRun"),
        (("plan", "-f", str(ROOT / "manifests/samples/evalrun.yaml")), "depends on the registry"),
        (("plan", "x", "--settings", "s"), "--settings: goes with -f only"),
        (("status",), "no cluster to talk to"),
        (("status", "--kubeconfig", "/nowhere"), "--kubeconfig: there is no file /nowhere"),
        (("status", "x", "--kind", "Pod"), "Invalid value for '--kind'"),
        (("put", "/nowhere", "corpus", "--claim", "c"), "/nowhere: there is no such file or folder"),
        (("put", str(SAMPLE), "../x", "--claim", "c"), "'../x' is no path of a workspace"),
        (("put", str(SAMPLE), "runs/x", "--claim", "c"), "runs/x: only runs write there"),
        (("put", str(SAMPLE), "x"), "Missing option '--claim'"),
        (("get", "x", "weights"), "Invalid value"),
        (("nonsense",), "No such command"),
    ],
    ids=lambda value: " ".join(value)[-40:] if isinstance(value, tuple) else None,
)
def test_a_mistake_is_answered_with_a_sentence(words: tuple[str, ...], complaint: str) -> None:
    done = mark(*words)
    assert done.code == 2
    assert complaint in done.err
    assert "Traceback" not in done.err


def test_wrong_settings_name_the_field(tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("trainerImgae: x\n")
    done = mark("plan", "-f", str(SAMPLE), "--settings", str(settings))
    assert (done.code, "trainerImgae: there is no such field" in done.err) == (2, True)


def test_an_api_server_that_is_not_there(tmp_path: Path) -> None:
    config = {
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "c",
    }
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    done = mark("status", "--kubeconfig", str(path))
    assert done.code == 4
    assert "https://127.0.0.1:1 does not answer" in done.err
    unknown = mark("status", "--kubeconfig", str(path), "--context", "other")
    assert (unknown.code, "other" in unknown.err) == (2, True)
