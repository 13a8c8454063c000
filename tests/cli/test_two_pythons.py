"""`mark plan -f` prints the operator's hash on the oldest and on the newest Python that the project supports, with the operator's pinned packages alone."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mark_operator.planning import plan
from mark_operator.run.plan import Rendering
from mark_operator.seen import RunKey
from mark_operator.settings import Settings
from random_changes import is_valid, random_model
from run_builders import SPECS, evaluating, training

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "operator" / "requirements.txt"
PYTHONS = ("3.11", "3.13")
RUNS = 250
BASES = {"TrainingRun": training, "EvalRun": evaluating}
SETTINGS = {
    "trainerImage": f"localhost/mark-trainer@sha256:{'ab' * 32}",
    "progressUrl": "https://mark-operator.mark-system.svc:8443",
}
MARK = "import sys; sys.argv[0] = 'mark'; from mark_operator.cli.main import main; main()"
INSTALL_SECONDS = 300


def manifests() -> Iterator[dict[str, Any]]:
    """Random valid runs of both kinds, as a person would write them: with absent fields and odd spellings of numbers."""
    dice, number = random.Random("two Pythons"), 0
    while number < RUNS:
        kind = dice.choice(list(SPECS))
        drawn = random_model(SPECS[kind], dice)
        spec = {**BASES[kind](), **{key: value for key, value in drawn.items() if dice.random() < 0.5}}
        if is_valid(SPECS[kind], spec) and (kind == "TrainingRun" or "path" in spec["model"]):
            number += 1
            metadata = {"name": f"run-{number}", "namespace": "legal"}
            yield {"apiVersion": "training.mark.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}


def environment(python: str) -> Path:
    """An interpreter of this version with the operator's packages; kept in build/ from one test run to the next."""
    uv = next(
        (
            path
            for path in (str(Path(sys.executable).with_name("uv")), shutil.which("uv"))
            if path and Path(path).exists()
        ),
        None,
    )
    if uv is None:
        pytest.skip(f"NOT RUN on Python {python}: there is no uv to make an environment with")
    folder = ROOT / "build" / f"python{python}"
    interpreter, mark = folder / "bin" / "python", folder / "installed"
    if not mark.exists() or mark.read_text() != REQUIREMENTS.read_text():
        made = subprocess.run(
            [uv, "venv", "-q", "--clear", "--python", wanted(python), str(folder)],
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode != 0:
            reason = made.stderr.strip().splitlines()[0]
            pytest.skip(f"NOT RUN on Python {python}: none is here and uv cannot fetch one ({reason})")
        install = [
            uv,
            "pip",
            "install",
            "-q",
            "--python",
            str(interpreter),
            "--require-hashes",
            "-r",
            str(REQUIREMENTS),
        ]
        subprocess.run(install, check=True, timeout=INSTALL_SECONDS)
        mark.write_text(REQUIREMENTS.read_text())
    return interpreter


def wanted(python: str) -> str:
    """An interpreter that pyenv keeps but does not show on the PATH; else the version, which uv finds or fetches."""
    kept = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = sorted(kept.glob(f"{python}.*/bin/python{python}"))
    return str(found[-1]) if found else python


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
def test_the_hashes_are_the_operators(python: str, tmp_path: Path) -> None:
    interpreter = environment(python)
    runs = list(manifests())
    file, settings = tmp_path / "runs.yaml", tmp_path / "settings.yaml"
    file.write_text("\n---\n".join(map(json.dumps, runs)))
    settings.write_text(yaml.safe_dump(SETTINGS))
    sources = os.pathsep.join(str(ROOT / folder) for folder in ("crds", "operator"))
    command = [str(interpreter), "-c", MARK, "plan", "-f", str(file), "--settings", str(settings), "-o", "json"]
    clean = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": sources, "PYTHONHASHSEED": "7"}
    done = subprocess.run(command, capture_output=True, text=True, env=clean, check=False)
    assert done.returncode == 0, done.stderr
    assert [item["hash"] for item in json.loads(done.stdout)] == [hash_of(run) for run in runs]


def hash_of(run: dict[str, Any]) -> str:
    """What the operator plans for the run as the API server stores it, with every default filled in."""
    stored = SPECS[run["kind"]].model_validate(run["spec"]).to_dict()
    key = RunKey(run["kind"], run["metadata"]["namespace"], run["metadata"]["name"])
    rendering = plan(key, stored, Settings.model_validate(SETTINGS))
    assert isinstance(rendering, Rendering), rendering
    return rendering.hash
