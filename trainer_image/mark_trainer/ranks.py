"""The processes of a training stage: which one this is, how they start, and what they must agree on.

There is one process a GPU, or one a node without GPUs. A Pod with several GPUs starts its processes itself and ends as
the first of them that fails. Libraries find each other by the usual variables RANK, WORLD_SIZE, LOCAL_RANK,
MASTER_ADDR and MASTER_PORT. It must not know what is trained.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from mark_crds.job_input import JobInput

MASTER_PORT = "29500"
SEVERAL_PROCESS_STAGES = frozenset({"lora"})  # reward and ppo run as one process
SECONDS_TO_END = 30.0  # for the other processes, once one has failed
_SECONDS_BETWEEN_LOOKS = 0.2


@dataclass(frozen=True)
class Rank:
    """One process among those of a stage."""

    index: int = 0
    processes: int = 1
    local_index: int = 0
    """Its place on its node, which is also the number of its GPU."""

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """This process, as its starter told it."""
        return cls(
            index=int(environment.get("RANK", "0")),
            processes=int(environment.get("WORLD_SIZE", "1")),
            local_index=int(environment.get("LOCAL_RANK", "0")),
        )

    @property
    def first(self) -> bool:
        """Whether it is the one that speaks and writes for all."""
        return self.index == 0

    @property
    def alone(self) -> bool:
        return self.processes == 1


def variables(job: JobInput, environment: Mapping[str, str]) -> list[dict[str, str]]:
    """The variables of each process that this Pod is to start; none when there is one process in all."""
    here = max(1, job.gpus_per_node)
    processes = job.nodes * here
    if processes == 1:
        return []
    node = int(environment.get("JOB_COMPLETION_INDEX", "0"))
    return [
        {
            "RANK": str(node * here + local),
            "LOCAL_RANK": str(local),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(here),
            "OMP_NUM_THREADS": str(max(1, int(environment.get("OMP_NUM_THREADS", "1")) // here)),
            "MASTER_ADDR": environment.get("MASTER_ADDR", "127.0.0.1"),
            "MASTER_PORT": environment.get("MASTER_PORT", MASTER_PORT),
        }
        for local in range(here)
    ]


def start(job: JobInput, stage: str, command: Sequence[str]) -> int | None:
    """Make this process one of the stage's ranks, or start those of this Pod and wait for them.

    Returns the Pod's exit code when it waited for others, else None: then the caller does the stage itself.
    """
    if stage not in SEVERAL_PROCESS_STAGES or "RANK" in os.environ:
        return None
    ranks = variables(job, os.environ)
    if len(ranks) > 1:
        return supervise([(command, {**os.environ, **rank}) for rank in ranks])
    os.environ.update(ranks[0] if ranks else {})
    return None


def supervise(processes: Iterable[tuple[Sequence[str], Mapping[str, str]]]) -> int:
    """Runs the processes side by side; returns 0, or the exit code of the first that failed, after ending the rest.

    SIGTERM is passed on to each, so that all of them save and leave together; one that comes while they start, once all
    have started.
    """
    children: list[subprocess.Popen[bytes]] = []
    asked = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        for command, environment in processes:
            children.append(subprocess.Popen(command, env=environment))
        failed = 0
        while not failed and any(child.poll() is None for child in children):
            _pass_on(asked, children)
            failed = next((child.returncode for child in children if child.poll()), 0)
        deadline = time.monotonic() + SECONDS_TO_END
        while failed and any(child.poll() is None for child in children) and time.monotonic() < deadline:
            _pass_on(asked, children)
        return 128 - failed if failed < 0 else failed
    finally:
        signal.signal(signal.SIGTERM, before)
        _send(children, signal.SIGKILL)
        for child in children:
            child.wait()


def command_again(arguments: Sequence[str] | None) -> list[str]:
    """The command line that runs the trainer with these arguments, else this process's own, in another process."""
    return [sys.executable, "-m", "mark_trainer", *(sys.argv[1:] if arguments is None else arguments)]


def _pass_on(asked: threading.Event, children: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Waits a moment, and tells the children what was asked meanwhile."""
    time.sleep(_SECONDS_BETWEEN_LOOKS)
    if asked.is_set():
        asked.clear()
        _send(children, signal.SIGTERM)


def _send(children: Sequence["subprocess.Popen[bytes]"], number: signal.Signals) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(number)


# ---------------------------------------------------------------------------------------------------------------------
# What the ranks agree on. With one process each of these is that process's own word.


def any_of(rank: Rank, *flags: bool) -> tuple[bool, ...]:
    """Each flag, true for all when it is true for one."""
    if rank.alone:
        return flags
    import torch

    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    raised = torch.tensor(flags, dtype=torch.int32, device=device)
    torch.distributed.all_reduce(raised, op=torch.distributed.ReduceOp.MAX)
    return tuple(bool(flag) for flag in raised.tolist())


def of_first(rank: Rank, make: Callable[[], Any]) -> Any:
    """What the first process makes of it; the others wait for it. Also a barrier."""
    if rank.alone:
        return make()
    import torch

    values = [make() if rank.first else None]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def wait_for_all(rank: Rank) -> None:
    """Returns when every process has come here."""
    if not rank.alone:
        import torch

        torch.distributed.barrier()
