"""What can go wrong for a person at the command line: one sentence, one remedy, one exit code. It must not print."""

from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of every command."""

    DONE = 0
    RUN_FAILED = 1  # the run failed or was cancelled, or a check of its plan failed
    USAGE = 2  # the command line, or a file it names, is wrong
    REFUSED = 3  # the state of the run or of the target does not allow it
    CLUSTER = 4  # the cluster cannot be reached, forbids it, or does not have the object


class CommandError(Exception):
    """Ends a command. `remedy` says what to do next; it may be several lines."""

    exit_code = ExitCode.CLUSTER

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class InputError(CommandError):
    """The command line, or a file it names, is wrong."""

    exit_code = ExitCode.USAGE


class RefusedError(CommandError):
    """The state of the run or of the target does not allow it."""

    exit_code = ExitCode.REFUSED


class ClusterError(CommandError):
    """The cluster cannot be reached, forbids the request, or does not have the object."""


class NotFoundError(ClusterError):
    """The object does not exist."""
