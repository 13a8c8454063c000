"""Runs, reports and models as the API server and the workspace hold them, for the tests of the views."""

import copy
from datetime import UTC, datetime
from typing import Any

NOW = datetime(2026, 5, 4, 10, 30, 0, tzinfo=UTC)
HASH = "3f9a1c27b8de" + "0" * 52
DIGEST = "77aa88bb99cc" + "1" * 52


def planned_run(**status: Any) -> dict[str, Any]:
    """A TrainingRun with its plan."""
    stages = [("preflight", 0), ("ingest", 0), ("dataPrep", 0), ("lora", 2), ("eval", 1)]
    return {
        "apiVersion": "training.mark.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {
            "name": "contracts-lora",
            "namespace": "research",
            "generation": 1,
            "creationTimestamp": "2026-05-04T10:00:00Z",
        },
        "spec": {
            "dryRun": True,
            "confirm": False,
            "stages": ["ingest", "dataPrep", "lora", "eval"],
            "workspace": {"claimName": "mark-workspace"},
            "baseModel": {"path": "base/tiny-llama"},
            "ingest": {"path": "corpus"},
            "dataPrep": {"collection": "pdf_docs", "maxSamples": 1000, "topK": 3, "validationFraction": "0.2"},
            "lora": {"epochs": 3, "rank": 16, "learningRate": "0.0002", "batchSize": 4, "gradientAccumulationSteps": 2},
            "evaluation": {"metrics": ["exactMatch", "f1"], "rag": True, "maxItems": 200},
            "output": {"model": "transformer-lora"},
        },
        "status": {
            "observedGeneration": 1,
            "state": "PlanReady",
            "conditions": [
                condition("Planned", "True", "PlanReady", "The plan stands in status.plan and nothing runs."),
                condition("Confirmed", "False", "NotConfirmed", "spec.confirm is false, so nothing runs."),
                condition("Ready", "True", "PlanReady", "The plan stands in status.plan and nothing runs."),
            ],
            "plan": {
                "hash": HASH,
                "shortHash": HASH[:12],
                "seen": True,
                "plannedAt": "2026-05-04T10:29:48Z",
                "stages": [planned_stage(stage, gpus) for stage, gpus in stages],
                "checks": [
                    check("claim", "Passed", "mark-workspace is Bound, ReadWriteOnce"),
                    check("gpu", "NotChecked", "the operator may not list nodes"),
                ],
                "gpuHoursAtMost": "72",
                "model": {"name": "transformer-lora", "action": "Create"},
                "warnings": ["a warning with [brackets], which are no markup"],
                "confirmCommand": f"mark confirm contracts-lora -n research --plan {HASH}",
            },
            **status,
        },
    }


def refused_run() -> dict[str, Any]:
    """A run whose plan has failed checks."""
    run = planned_run()
    run["status"]["plan"]["checks"] += [
        check("quota", "Failed", "gpus leaves 0 of requests.nvidia.com/gpu, 2 are needed; ask for less")
    ]
    return run


def running_run() -> dict[str, Any]:
    """A confirmed run in the middle of its lora stage."""
    last_failure = {"reason": "Disrupted", "message": "Pod contracts-t-lora-1-0 was taken away by the cluster (PreemptionByScheduler)"}
    run = planned_run(
        state="Running",
        stage="lora",
        startedAt="2026-05-04T10:10:00Z",
        confirmation={"planHash": HASH, "by": "alice", "at": "2026-05-04T10:09:59Z"},
        stages=[
            stage("preflight", "Succeeded", "2026-05-04T10:10:00Z", "2026-05-04T10:10:04Z"),
            stage("ingest", "Succeeded", "2026-05-04T10:10:04Z", "2026-05-04T10:12:11Z", documents="91", chunks="1204"),
            stage("dataPrep", "Succeeded", "2026-05-04T10:12:11Z", "2026-05-04T10:13:00Z", rows="1000"),
            {**stage("lora", "Running", "2026-05-04T10:13:00Z", attempt=2), "lastFailure": last_failure},
            stage("eval", "Pending"),
        ],
        progress={
            "stage": "lora",
            "percent": 42,
            "step": 126,
            "steps": 300,
            "epoch": "1.26",
            "loss": "2.1134567",
            "tokensPerSecond": "1834.2",
            "etaSeconds": 725,
            "updated": "2026-05-04T10:29:58Z",
        },
        lastCheckpoint={"stage": "lora", "step": 120, "time": "2026-05-04T10:28:00Z"},
        conditions=[
            condition("Planned", "True", "Planned", "Plan 3f9a1c27b8de was made."),
            condition("Confirmed", "True", "Confirmed", "Plan 3f9a1c27b8de was confirmed"),
            condition("Progressing", "True", "Running", "Stage lora, attempt 2 is running"),
            condition("Succeeded", "Unknown", "Running", "Stage lora, attempt 2 is running"),
            condition("Ready", "True", "Running", "Stage lora, attempt 2 is running"),
            condition("Stalled", "False", "Running", "Stage lora, attempt 2 is running"),
        ],
    )
    run["spec"] |= {"dryRun": False, "confirm": True, "confirmPlan": HASH, "confirmedBy": "alice"}
    return run


def succeeded_run() -> dict[str, Any]:
    """A run that has ended well."""
    run = running_run()
    status = run["status"]
    status |= {"state": "Succeeded", "stage": "eval", "finishedAt": "2026-05-04T10:25:00Z"}
    status["stages"][3] = stage(
        "lora", "Succeeded", "2026-05-04T10:13:00Z", "2026-05-04T10:21:00Z", loss="1.9", tokens="400000"
    )
    status["stages"][4] = stage("eval", "Succeeded", "2026-05-04T10:21:00Z", "2026-05-04T10:25:00Z")
    status["conditions"] = [condition("Succeeded", "True", "Succeeded", "All 5 stages are done")]
    status["result"] = {
        "model": "transformer-lora",
        "measures": [
            {"name": "base.retrieved.f1", "value": "0.3114159"},
            {"name": "tuned.retrieved.f1", "value": "0.512"},
            {"name": "nllDifference", "value": "-0.31"},
        ],
        "artifacts": [
            {"kind": "adapter", "path": f"adapters/{DIGEST}", "digest": DIGEST},
            {"kind": "report", "path": "reports/eval_transformer-lora_20260504T102500Z.json", "digest": HASH},
        ],
    }
    return run


def failed_run() -> dict[str, Any]:
    """A run that a mistake in its data has ended."""
    run = running_run()
    status = run["status"]
    status |= {"state": "Failed", "stage": "ingest", "finishedAt": "2026-05-04T10:10:30Z"}
    failure = {
        "reason": "EncryptedPdf",
        "message": "corpus/secret.pdf: is encrypted; remove the password or the file",
        "container": "trainer",
        "exitCode": 65,
    }
    failed = {**stage("ingest", "Failed", "2026-05-04T10:10:04Z", "2026-05-04T10:10:30Z"), "failure": failure}
    status["stages"] = [status["stages"][0], failed]
    message = "corpus/secret.pdf: is encrypted; remove the password or the file"
    status["conditions"] = [
        condition("Succeeded", "False", "EncryptedPdf", message),
        condition("Stalled", "True", "EncryptedPdf", message),
    ]
    del status["progress"]
    return run


def new_run() -> dict[str, Any]:
    """A run that the operator has not seen."""
    run = planned_run()
    del run["status"]
    return run


def with_changes(run: dict[str, Any], **status: Any) -> dict[str, Any]:
    """The run a moment later."""
    later = copy.deepcopy(run)
    later["status"] |= status
    return later


STATES = ("verified", "repaired", "unverified", "unchecked")
PARTS = ("rightWithoutPassages", "rightFromPassages", "retrievalMissed", "misread", "invented")


def report() -> dict[str, Any]:
    """An evaluation report: base beside tuned, three conditions."""
    grid = {"closedBook": (0.02, 0.11), "retrieved": (0.31, 0.52), "oracle": (0.38, 0.61)}
    scores: dict[str, Any] = {"base": {}, "tuned": {}}
    for condition_name, values in grid.items():
        for model, value in zip(scores, values, strict=True):
            metrics = ("exactMatch", "f1", "rougeL", "bleu", "sentenceBleu")
            scores[model][condition_name] = {
                "items": 40,
                **{m: estimate(value + n / 100, 0.05) for n, m in enumerate(metrics)},
            }
    nats = {
        name: {"base": estimate(4.2, 0.2), "tuned": estimate(3.7, 0.2), "difference": estimate(-0.5, 0.12)}
        for name in grid
    }
    return {
        "formatVersion": 2,
        "model": "transformer-lora",
        "time": "2026-05-04T10:25:00Z",
        "base": {"path": "base/tiny-llama", "digest": DIGEST},
        "dataset": {"path": f"datasets/{DIGEST}", "digest": DIGEST},
        "scores": scores,
        "answerNats": nats,
        "retrieval": {
            "hitRate": estimate(0.85, 0.06),
            "items": 36,
            "atK": [
                {"k": k, "recall": estimate(0.6 + k / 10, 0.05), "precision": estimate(0.1 / k, 0.02)} for k in (1, 2, 3)
            ],
            "passagesCut": 0,
        },
        "abstention": {
            model: {
                name: {
                    "answerable": {"answered": 36 - wrongly, "abstained": wrongly},
                    "unanswerable": {"answered": 4 - rightly, "abstained": rightly},
                }
                for name in grid
            }
            for model, wrongly, rightly in (("base", 0, 0), ("tuned", 2, 3))
        },
        "citations": {
            model: {name: dict(zip(STATES, counts, strict=True)) for name in grid}
            for model, counts in (("base", (10, 4, 26, 0)), ("tuned", (24, 3, 8, 5)))
        },
        "errors": {
            model: {name: dict(zip(PARTS, counts, strict=True)) for name in ("retrieved", "oracle")}
            for model, counts in (("base", (1, 9, 6, 12, 12)), ("tuned", (4, 18, 6, 8, 4)))
        },
        "heldOutText": {"base": estimate(4.9, 0.1), "unigram": estimate(6.1, 0.1), "difference": estimate(-1.2, 0.05)},
    }


def model() -> dict[str, Any]:
    """A registry entry with two versions."""
    versions = [
        {
            "digest": digest,
            "path": f"adapters/{digest}",
            "claimName": "mark-workspace",
            "run": run,
            "base": "base/tiny-llama",
            "headline": [{"name": "tuned.retrieved.f1", "value": value}],
            "passed": passed,
            "created": created,
        }
        for digest, run, value, passed, created in (
            (DIGEST, "contracts-lora", "0.512", True, "2026-05-04T10:25:00Z"),
            (HASH, "contracts-lora-2", "0.498", None, "2026-05-05T10:25:00Z"),
        )
    ]
    return {
        "metadata": {"name": "transformer-lora", "namespace": "research"},
        "spec": {"family": "transformer", "preferRagFinetuned": True, "promotedVersion": ""},
        "status": {"versions": versions, "current": DIGEST},
    }


def condition(type_: str, status: str, reason: str, message: str) -> dict[str, Any]:
    return {
        "type": type_, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": "2026-05-04T10:00:01Z",
    }  # fmt: skip


def check(name: str, outcome: str, message: str) -> dict[str, Any]:
    return {"name": name, "outcome": outcome, "message": message}


def planned_stage(name: str, gpus: int) -> dict[str, Any]:
    image = "registry.example/mark-trainer@sha256:" + "ab" * 32
    job = f"contracts-lora-t-{name.lower()}-1"
    bounds = {
        "dataPrep": {"writes": ["datasets/<digest>"]},
        "lora": {"stepsAtMost": 375, "tokensAtMost": 3072000, "gpuHoursAtMost": "48", "writes": ["adapters/<digest>"]},
        "eval": {"gpuHoursAtMost": "24", "writes": ["reports"]},
    }
    means = {"nodes": gpus or 1, "gpus": gpus, "cpu": "8", "memory": "64Gi"}
    return {"stage": name, "job": job, "image": image, **means, **bounds.get(name, {})}


def stage(
    name: str, state: str, started: str = "", finished: str = "", attempt: int = 1, **measures: str
) -> dict[str, Any]:
    times = {key: value for key, value in (("startedAt", started), ("finishedAt", finished)) if value}
    rows = [{"name": key, "value": value} for key, value in measures.items()]
    return {
        "stage": name,
        "state": state,
        "job": f"contracts-lora-t-{name}",
        "attempt": attempt,
        **times,
        "measures": rows,
    }


def estimate(value: float, half: float) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "clusters": 12}
