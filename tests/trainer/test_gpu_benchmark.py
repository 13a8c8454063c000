"""The benchmark that waits for a GPU works: its tiny rehearsal on a CPU runs to the end."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[1] / "bench" / "trainer_gpu.py"


@pytest.mark.slow
def test_the_gpu_benchmark_rehearses() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--rehearse"], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"CPU, rehearsal: \S+ billion weights, [1-9][\d,]* tokens/s", done.stdout)
