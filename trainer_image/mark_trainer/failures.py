"""How a stage fails: one class for each exit code, so that the operator knows whether another attempt can help.

It must hold no policy of retries.
"""

import errno
from collections.abc import Iterator
from typing import ClassVar

from mark_crds.job_output import ExitCode

_FULL = (errno.ENOSPC, errno.EDQUOT)


class Failure(Exception):  # noqa: N818 - named for what it is, like its kinds
    """The end of a stage, with a reason for programs and a sentence for people: what happened, where, what to do."""

    exit_code: ClassVar[ExitCode]
    outcome: ClassVar[str]

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message


class UserMistake(Failure):
    """The run cannot work as it was written. Never retried."""

    exit_code = ExitCode.USER_MISTAKE
    outcome = "UserMistake"


class BadData(Failure):
    """The run is well written, but a file it works on is not usable. Never retried."""

    exit_code = ExitCode.BAD_DATA
    outcome = "BadData"


class MachineTrouble(Failure):
    """Nobody's mistake: another attempt can succeed."""

    exit_code = ExitCode.MACHINE_TROUBLE
    outcome = "MachineTrouble"


class Stopped(Failure):
    """The machine asked the stage to end and its work so far is kept, or another run holds what it needs.

    Retried, and not counted as an attempt.
    """

    exit_code = ExitCode.STOPPED
    outcome = "Stopped"


# torch.OutOfMemoryError, by name: this module must not import torch.
GPU_OUT_OF_MEMORY = "OutOfMemoryError"


def failure_of(error: BaseException) -> Failure:
    """The failure that any exception of a stage amounts to."""
    if isinstance(error, Failure):
        return error
    if any(_means_full_disk(link) for link in _chain(error)):
        # A retry would fill the same disk and hold a GPU meanwhile, so it is the user's to mend.
        return UserMistake(
            "DiskFull",
            "the workspace's volume is full: enlarge the claim of spec.workspace.claimName "
            "or remove folders that nobody needs below runs/, then start the run again",
        )
    if isinstance(error, MemoryError):
        return MachineTrouble("OutOfMemory", "the stage ran out of memory: raise the memory of its Pods")
    if type(error).__name__ == GPU_OUT_OF_MEMORY:
        return MachineTrouble(
            "GpuOutOfMemory",
            "a GPU ran out of memory: lower batchSize and raise gradientAccumulationSteps by as much, which trains "
            f"the same, or lower maxLength ({_last_line(str(error))})",
        )
    return MachineTrouble("UnexpectedError", f"{type(error).__name__}: {_last_line(str(error))}")


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _means_full_disk(error: BaseException) -> bool:
    # SQLite reports a full disk only in words.
    return (isinstance(error, OSError) and error.errno in _FULL) or "disk is full" in str(error)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
