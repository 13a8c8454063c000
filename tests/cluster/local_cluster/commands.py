"""Run other programs: their output is captured, and a failure shows its last lines."""

import os
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from .errors import ClusterError

TAIL_CHARACTERS = 3000
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def run(
    *command: str | Path,
    input_text: str | None = None,
    extra_environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    timeout: float = 600,
    remedy: str = "",
) -> str:
    """Run a command to its end and return its standard output."""
    words = [str(word) for word in command]
    environment = {**os.environ, **(extra_environment or {})}
    environment["PATH"] = f"{environment.get('PATH', '')}:{SYSTEM_PATH}"
    try:
        done = subprocess.run(
            words,
            input=input_text,
            env=environment,
            cwd=folder,
            timeout=timeout,
            text=True,
            capture_output=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise ClusterError(f"{words[0]} is not installed", remedy) from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"no end after {timeout:.0f} s: {' '.join(words[:6])}", remedy) from error
    if done.returncode != 0:
        output = (done.stdout + done.stderr).strip()[-TAIL_CHARACTERS:]
        raise ClusterError(f"exit code {done.returncode}: {' '.join(words[:8])}\n{output}", remedy)
    return done.stdout


def succeeds(*command: str | Path, timeout: float = 60) -> bool:
    """Whether the command ends well."""
    try:
        run(*command, timeout=timeout)
    except ClusterError:
        return False
    return True


def wait_until(what: str, check: Callable[[], bool], seconds: float, remedy: str = "") -> None:
    """Ask again and again until the check holds."""
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            raise ClusterError(f"after {seconds:.0f} s still not so: {what}", remedy)
        time.sleep(0.2)
