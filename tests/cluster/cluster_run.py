"""Runs on the cluster, seen from outside: waiting for something, with the evidence when it does not come."""

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import demo
import pytest
from mark_crds import names

Kubectl = Callable[..., str]
OPERATOR = "app.kubernetes.io/name=mark-operator"
RUN_SECONDS = 1200
PLAN_SECONDS = 60
LINES = 8


def until(look: Callable[[], Any], what: str, seconds: float = RUN_SECONDS, evidence: Callable[[], str] = str) -> Any:
    """The first true answer; the test fails when none comes in time, and prints the evidence."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = look()
        if found:
            return found
        time.sleep(0.3)
    pytest.fail(f"not within {seconds:.0f} s: {what}\n{evidence()}")


@dataclass(frozen=True)
class Run:
    """One run by its name, whether it is there or not."""

    kubectl: Kubectl
    namespace: str
    name: str
    kind: str = "trainingrun"

    def status(self) -> dict[str, Any]:
        run: dict[str, Any] = json.loads(self.kubectl("get", self.kind, self.name, "-n", self.namespace, "-o", "json"))
        return run.get("status", {})

    def jobs(self) -> list[str]:
        label = f"{names.RUN_LABEL}={self.name}"
        return sorted(self.kubectl("get", "jobs", "-n", self.namespace, "-l", label, "-o", "jsonpath={.items[*].metadata.name}").split())

    def until(self, look: Callable[[dict[str, Any]], Any], what: str, seconds: float = RUN_SECONDS) -> Any:
        """The first true answer to what is asked of the status."""
        return until(lambda: look(self.status()), f"{self.name}: {what}", seconds, self.evidence)

    def planned(self) -> None:
        self.until(lambda status: status.get("state") == "PlanReady", "planned", PLAN_SECONDS)

    def working_on(self, stage: str) -> None:
        self.until(lambda status: _is_running(status, stage), f"the stage {stage} running")

    def ended(self, seconds: float = RUN_SECONDS) -> dict[str, Any]:
        """The status at the end."""
        status: dict[str, Any] = self.until(lambda status: "finishedAt" in status and status, "the end", seconds)
        return status

    def evidence(self) -> str:
        """What to read first when a run does not do what it should: its status, its Pods' and the operator's last words."""
        status = self.status()
        told = {field: status.get(field) for field in ("state", "stage", "progress", "finishedAt", "stages")}
        label = f"{names.RUN_LABEL}={self.name}"
        pods = self.kubectl("get", "pods", "-n", self.namespace, "-l", label, "--sort-by=.metadata.creationTimestamp", "-o", "name").split()
        logs = [_log(self.namespace, pod) for pod in pods[-2:]]
        return "\n".join([json.dumps(told), *logs, _log(demo.OPERATOR_NAMESPACE, "--selector", OPERATOR, "--prefix")])


def _is_running(status: dict[str, Any], stage: str) -> bool:
    return any(item["stage"] == stage and item["state"] == "Running" for item in status.get("stages", []))


def _log(namespace: str, *words: str) -> str:
    command = ["kubectl", "logs", "-n", namespace, "--tail", str(LINES), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return f"{' '.join(command)}:\n{done.stdout}{done.stderr}"
