"""manifests/gitops/one-commit/check-plan.sh, as the CI of a pull request runs it."""

import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[2] / "manifests" / "gitops" / "one-commit"
ZEROS = "0" * 64


def check(run: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [str(EXAMPLE / "check-plan.sh"), str(run), str(EXAMPLE / "settings.yaml")]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": path}, check=False)


def test_hash_of_another_plan_fails_and_names_the_right_one(tmp_path: Path) -> None:
    done = check(EXAMPLE / "run.yaml")
    assert done.returncode == 1
    (planned,) = re.findall(r'confirmPlan: "([0-9a-f]{64})"', done.stderr)
    assert planned in done.stdout
    confirmed = tmp_path / "run.yaml"
    confirmed.write_text((EXAMPLE / "run.yaml").read_text().replace(ZEROS, planned))
    assert check(confirmed).returncode == 0


def test_changed_work_fails_with_the_old_hash(tmp_path: Path) -> None:
    (planned,) = re.findall(r'confirmPlan: "([0-9a-f]{64})"', check(EXAMPLE / "run.yaml").stderr)
    text = (EXAMPLE / "run.yaml").read_text().replace(ZEROS, planned)
    changed = tmp_path / "run.yaml"
    changed.write_text(text.replace("epochs: 3", "epochs: 4"))
    assert check(changed).returncode == 1


def test_the_example_as_it_stands_starts_nothing() -> None:
    assert f'confirmPlan: "{ZEROS}"' in (EXAMPLE / "run.yaml").read_text()
