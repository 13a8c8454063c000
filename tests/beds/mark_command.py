"""The command `mark`, run inside the test's process: its words in, its exit code and output out."""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest.mock import patch

from mark_operator.cli.main import main


@dataclass(frozen=True)
class Done:
    """How the command ended."""

    code: int
    out: str
    err: str


def mark(*words: str) -> Done:
    """Run `mark` with these words."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with patch.object(sys, "argv", ["mark", *words]), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return Done(code, out.getvalue(), err.getvalue())
