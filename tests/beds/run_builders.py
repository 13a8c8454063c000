"""Runs, Jobs and Pods as the API server would show them, with short words for what a test is about."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from mark_crds.eval_run import EvalRunSpec
from mark_crds.training_run import TrainingRunSpec
from mark_operator import planning
from mark_operator.job_facts import REQUIRED_ARTIFACTS
from mark_operator.run.objects import owned
from mark_operator.run.plan import Rendering
from mark_operator.run.view import View
from mark_operator.seen import Answer, Findings, RunKey, Seen
from mark_operator.settings import Settings

Body = dict[str, Any]
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
UID = "11111111-2222-3333-4444-555555555555"
DIGEST = "ab" * 32
KEY = RunKey("TrainingRun", "legal", "contracts")
SETTINGS = Settings(progress_url="https://mark-operator.mark-system.svc:8443")
SPECS = {"TrainingRun": TrainingRunSpec, "EvalRun": EvalRunSpec}


def training(**changes: Any) -> Body:
    """The spec of a small training run, as stored: with all defaults filled in."""
    spec = {
        "workspace": {"claimName": "workspace"},
        "baseModel": {"path": "base/tiny"},
        "lora": {"epochs": 1},
        "resources": {"gpusPerNode": 0},
        **changes,
    }
    return TrainingRunSpec.model_validate(spec).to_dict()


def evaluating(**changes: Any) -> Body:
    """The spec of a small evaluation, as stored."""
    spec = {
        "workspace": {"claimName": "workspace"},
        "model": {"path": "adapters/x"},
        "dataset": {"path": "datasets/x"},
        "resources": {"gpusPerNode": 0},
        **changes,
    }
    return EvalRunSpec.model_validate(spec).to_dict()


def a_run(spec: Body, status: Body | None = None, key: RunKey = KEY, **metadata: Any) -> Body:
    """A run as the API server shows it."""
    head = {"name": key.name, "namespace": key.namespace, "uid": UID, "generation": 1, "resourceVersion": "1"}
    return {
        "apiVersion": "training.mark.dev/v1alpha1",
        "kind": key.kind,
        "metadata": {**head, **metadata},
        "spec": spec,
        **({"status": status} if status else {}),
    }


def rendering_of(
    spec: Body, settings: Settings = SETTINGS, key: RunKey = KEY, models: tuple[Body, ...] = ()
) -> Rendering:
    """The plan of a spec that can be planned."""
    rendering = planning.plan(key, spec, settings, models)
    assert isinstance(rendering, Rendering), rendering
    return rendering


def plan_object(rendering: Rendering, uid: str = UID) -> Body:
    """The ConfigMap with the confirmed plan."""
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "plan"}, "data": dict(rendering.data)}
    return owned(body, kind=KEY.kind, run=KEY.name, uid=uid)


def view_of(run: Body, *, settings: Settings = SETTINGS, after: float = 0, key: RunKey = KEY, **seen: Any) -> View:
    """One look at a run, some seconds after noon."""
    return View(Seen(key, run, **seen), settings, NOON + timedelta(seconds=after))


def all_well() -> Findings:
    """A cluster in which every prerequisite holds."""
    return Findings(
        claim=Answer(
            "Found", ({"metadata": {}, "spec": {"accessModes": ["ReadWriteMany"]}, "status": {"phase": "Bound"}},)
        ),
        service_account=Answer("Found", ({},)),
        nodes=Answer("Found", ({"status": {"allocatable": {"nvidia.com/gpu": "8"}}},)),
        quotas=Answer("Found"),
        freeze=Answer("Missing"),
    )


def job_with(job: Body, *verdicts: str, reason: str = "", message: str = "", **status: Any) -> Body:
    """A Job with these verdicts of its controller."""
    conditions = [{"type": verdict, "status": "True", "reason": reason, "message": message} for verdict in verdicts]
    name = job["metadata"]["name"]
    return {
        **job,
        "metadata": {**job["metadata"], "uid": f"uid-of-{name}"},
        "status": {"conditions": conditions, **status},
    }


def pod_with(job: Body, state: Body, phase: str = "Running", index: int = 0, conditions: tuple[Body, ...] = ()) -> Body:
    """The Pod of a Job whose trainer is in this state."""
    name = job["metadata"]["name"]
    return {
        "metadata": {
            "name": f"{name}-{index}-abcde",
            "labels": job["spec"]["template"]["metadata"]["labels"],
            "annotations": {"batch.kubernetes.io/job-completion-index": str(index)},
            "ownerReferences": [{"uid": f"uid-of-{name}"}],
        },
        "spec": {"nodeName": "node1"},
        "status": {
            "phase": phase,
            "containerStatuses": [{"name": "trainer", "state": state}],
            "conditions": list(conditions),
        },
    }


def terminated(code: int, message: str | Mapping[str, Any] = "", reason: str = "Error", at: int = 0) -> Body:
    """A trainer that ended with this code and these last words."""
    text = message if isinstance(message, str) else json.dumps(message)
    return {
        "terminated": {"exitCode": code, "message": text, "reason": reason, "finishedAt": f"2026-01-31T12:00:{at:02}Z"}
    }


def a_result(stage: str, **changes: Any) -> Body:
    """A Result as the trainer leaves it, with the artifact that the stage must publish."""
    kind = REQUIRED_ARTIFACTS.get(stage)
    found = [{"kind": kind, "path": f"{stage}/x", "digest": DIGEST}] if kind else []
    return {"stage": stage, "outcome": "Done", "reason": "Done", "message": "done", "artifacts": found, **changes}
