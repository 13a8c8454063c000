"""Helm, and what the chart renders with given values. No cluster."""

import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from mark_operator.generate import CHART, find_helm

Rendered = list[dict[str, Any]]
# The CRDs are long; the C loader reads them ten times faster.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@pytest.fixture(scope="session")
def helm() -> str:
    """The Helm that the local cluster is installed with, else the one on the PATH."""
    found = find_helm()
    if found is None:
        pytest.skip("helm is not there; `python3 tests/cluster/local.py binaries` builds it")
    return found


@pytest.fixture(scope="session")
def template(helm: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `helm template`, as release mark-operator in mark-system; each word is a value such as `replicas=1`."""

    def run(*values: str, release: str = "mark-operator") -> subprocess.CompletedProcess[str]:
        settings = [word for value in values for word in ("--set", value)]
        command = [helm, "template", release, str(CHART), "--namespace", "mark-system", *settings]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    return run


@pytest.fixture(scope="session")
def render(template: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., Rendered]:
    """The rendered objects."""

    def objects(*values: str, release: str = "mark-operator") -> Rendered:
        done = template(*values, release=release)
        assert done.returncode == 0, done.stderr
        return [document for document in yaml.load_all(done.stdout, LOADER) if document]

    return objects
