"""Start background processes, remember which ones they are, and end exactly those.

A process is known by its number, its start time and the boot it belongs to, so a number that was given to another
process later is never taken for ours.
"""

import json
import os
import signal
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from . import settings
from .commands import SYSTEM_PATH
from .errors import ClusterError

LOG_TAIL_LINES = 15


@dataclass(frozen=True)
class Process:
    """One process of this boot."""

    pid: int
    start_ticks: int
    boot: str

    def alive(self) -> bool:
        return self.boot == _boot() and _start_ticks(self.pid) == self.start_ticks

    def memory_mebibytes(self) -> int:
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") // 2**20


def identify(pid: int) -> Process | None:
    """The process that has this number now."""
    ticks = _start_ticks(pid)
    return None if ticks is None else Process(pid, ticks, _boot())


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _start_ticks(pid: int) -> int | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def start(name: str, command: list[str | Path]) -> None:
    """Start a component in the background, its output in a log of its own, and record it."""
    settings.LOGS.mkdir(parents=True, exist_ok=True)
    settings.RECORDS.mkdir(parents=True, exist_ok=True)
    with log(name).open("w") as output:
        child = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd="/",
            env={"PATH": SYSTEM_PATH, "HOME": str(settings.STATE)},
        )
    process = identify(child.pid)
    if process is None:
        raise ClusterError(f"{name} ended at once:\n{tail(name)}")
    (settings.RECORDS / f"{name}.json").write_text(json.dumps(asdict(process)))


def recorded() -> dict[str, Process]:
    """What was started and not yet stopped, alive or not."""
    records = sorted(settings.RECORDS.glob("*.json"))
    return {record.stem: Process(**json.loads(record.read_text())) for record in records}


def require_alive(name: str) -> None:
    """Fail with the last lines of its log if a component is gone."""
    process = recorded().get(name)
    if process is None or not process.alive():
        raise ClusterError(f"{name} is not running; the end of its log:\n{tail(name)}", f"the whole log: {log(name)}")


def stop(name: str, patience_seconds: float = 10) -> None:
    """End a component if it still runs, and forget it."""
    process = recorded().get(name)
    if process is None:
        return
    end(process, patience_seconds)
    (settings.RECORDS / f"{name}.json").unlink()


def end(process: Process, patience_seconds: float = 0) -> None:
    """Ask the process to stop, and kill it when patience is over; zero kills at once."""
    if patience_seconds and process.alive():
        _signal(process, signal.SIGTERM)
        _wait_gone(process, patience_seconds)
    if process.alive():
        _signal(process, signal.SIGKILL)
        _wait_gone(process, 20)
    if process.alive():
        raise ClusterError(f"process {process.pid} does not end", "see what it waits for in /proc/PID/stack")


def _signal(process: Process, number: signal.Signals) -> None:
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        # Checked with the descriptor open: from here on the number cannot mean another process.
        if process.alive():
            signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return
    finally:
        os.close(descriptor)


def _wait_gone(process: Process, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while process.alive() and time.monotonic() < deadline:
        time.sleep(0.05)


def log(name: str) -> Path:
    return settings.LOGS / f"{name}.log"


def tail(name: str) -> str:
    """The last lines of a component's log."""
    path = log(name)
    lines = path.read_text(errors="replace").splitlines() if path.exists() else ["(no log)"]
    return "\n".join(line[:300] for line in lines[-LOG_TAIL_LINES:])
