"""What can go wrong, in words that name the remedy; and the exit code each kind has."""


class ClusterError(Exception):
    """The cluster cannot do what was asked."""

    exit_code = 1

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(f"{problem}\n  Remedy: {remedy}" if remedy else problem)


class NotSupportedError(ClusterError):
    """This machine cannot carry the local cluster: suites that need it did not run, and must say so."""

    exit_code = 3
