"""A run's life against a real API server: plan, confirmation, stages, end."""

import time
from typing import Any

Body = dict[str, Any]
DIGEST = "ab" * 32


def artifact(kind: str, path: str) -> Body:
    return {"kind": kind, "path": path, "digest": DIGEST}


def test_a_run_goes_from_plan_to_success(bench: Any) -> None:
    bench.run(output={"model": "tiny"})
    status = bench.wait_for_state("PlanReady")
    assert [stage["stage"] for stage in status["plan"]["stages"]] == ["preflight", "dataPrep", "lora"]
    assert status["plan"]["seen"] and bench.jobs() == []
    bench.confirm()
    bench.wait_for_job("run-t-preflight-1")
    bench.finish("run-t-preflight-1")
    bench.finish("run-t-data-prep-1", artifacts=[artifact("dataset", "datasets/x")])
    bench.finish(
        "run-t-lora-1", artifacts=[artifact("adapter", "adapters/x")], measures=[{"name": "loss", "value": "1.5"}]
    )
    status = bench.wait_for_state("Succeeded")
    assert bench.jobs() == ["run-t-data-prep-1", "run-t-lora-1", "run-t-preflight-1"]
    assert [item["kind"] for item in status["result"]["artifacts"]] == ["dataset", "adapter"]
    versions = bench.get("model", "tiny")["status"]["versions"]
    assert [version["digest"] for version in versions] == [DIGEST]


def condition(status: Body, kind: str) -> Body:
    found: Body = next(item for item in status["conditions"] if item["type"] == kind)
    return found


def test_nothing_starts_before_both_switches(bench: Any) -> None:
    bench.run()
    bench.wait_for_state("PlanReady")
    bench.patch("trainingrun", "run", {"spec": {"dryRun": False}})
    time.sleep(1.5)
    assert bench.status()["state"] == "PlanReady" and bench.jobs() == []
    assert condition(bench.status(), "Confirmed")["status"] == "False"


def test_a_run_that_is_created_confirmed_waits_for_a_reader(bench: Any) -> None:
    bench.run(dryRun=False, confirm=True)
    status = bench.wait_for_state("AwaitingConfirmation")
    ready = condition(status, "Ready")
    assert ready["reason"] == "ConfirmedUnseen" and f"--plan {status['plan']['hash']}" in ready["message"]
    assert not status["plan"]["seen"]
    time.sleep(1.5)
    assert bench.jobs() == []
    bench.patch("trainingrun", "run", {"spec": {"confirmPlan": status["plan"]["hash"]}})
    bench.wait_for_job("run-t-preflight-1")


def test_another_plan_than_the_confirmed_one_never_runs(bench: Any) -> None:
    bench.run()
    plan_hash = bench.wait_for_state("PlanReady")["plan"]["hash"]
    wrong = ("0" if plan_hash[0] != "0" else "1") + plan_hash[1:]
    bench.confirm(confirmPlan=wrong)
    status = bench.wait_for_state("AwaitingConfirmation")
    assert condition(status, "Ready")["reason"] == "PlanChanged"
    time.sleep(1.5)
    assert bench.jobs() == []
    bench.patch("trainingrun", "run", {"spec": {"confirmPlan": plan_hash}})
    bench.wait_for_job("run-t-preflight-1")


def test_a_failed_check_blocks_the_start_until_it_passes(bench: Any) -> None:
    bench.run(workspace={"claimName": "later"})
    bench.wait(
        lambda: condition(bench.status(), "Ready")["reason"] == "PrerequisiteFailed" if bench.status() else False
    )
    bench.confirm()
    time.sleep(1.5)
    assert bench.jobs() == []
    bench.claim("later")
    bench.wait_for_job("run-t-preflight-1")


def test_a_mistake_ends_the_run_at_once(bench: Any) -> None:
    bench.run()
    bench.wait_for_state("PlanReady")
    bench.confirm()
    words = {
        "outcome": "UserMistake",
        "reason": "NoSuchModel",
        "message": "baseModel.path: base/tiny is not there; copy it",
    }
    bench.finish("run-t-preflight-1", 64, **words)
    status = bench.wait_for_state("Failed")
    stalled = condition(status, "Stalled")
    assert (stalled["status"], stalled["reason"], stalled["message"]) == ("True", "NoSuchModel", words["message"])
    assert condition(status, "Succeeded")["status"] == "False"
    assert status["stages"][0]["failure"]["exitCode"] == 64
    time.sleep(1.5)
    assert bench.jobs() == ["run-t-preflight-1"]


def test_machine_trouble_is_tried_again_and_counted(bench: Any) -> None:
    bench.run(maxAttempts=2)
    bench.wait_for_state("PlanReady")
    bench.confirm()
    bench.finish("run-t-preflight-1", 75, outcome="Stopped")
    bench.finish("run-t-preflight-2", 70, outcome="MachineTrouble", reason="DiskFull", message="the disk is full")
    bench.finish("run-t-preflight-3", 70, outcome="MachineTrouble", reason="DiskFull", message="the disk is full")
    status = bench.wait_for_state("Failed")
    assert status["stages"][0]["countedFailures"] == 2 and status["stages"][0]["attempt"] == 3
    assert len(bench.jobs()) == 3


def test_finished_work_is_adopted(bench: Any) -> None:
    bench.run(output={"model": "adopted"})
    bench.wait_for_state("PlanReady")
    bench.confirm()
    adopted = {"runUid": "1234", "finished": "2026-01-01T00:00:00Z", "datasetDigest": DIGEST}
    found = [artifact("dataset", "datasets/x"), artifact("adapter", "adapters/x")]
    bench.finish("run-t-preflight-1", outcome="Adopted", adopted=adopted, artifacts=found)
    status = bench.wait_for_state("Adopted")
    assert status["result"]["adoptedRun"] == "1234" and condition(status, "Succeeded")["status"] == "True"
    assert bench.get("model", "adopted")["status"]["versions"][0]["runUid"] == "1234"
    assert bench.jobs() == ["run-t-preflight-1"]


def test_taking_back_the_confirmation_cancels(bench: Any) -> None:
    bench.run()
    bench.wait_for_state("PlanReady")
    bench.confirm()
    bench.wait_for_job("run-t-preflight-1")
    bench.patch("trainingrun", "run", {"spec": {"confirm": False}})
    bench.wait_for_state("Cancelled")
    assert bench.jobs() == []


def test_suspend_reaches_the_job_and_nothing_else_of_it(bench: Any) -> None:
    bench.run()
    bench.wait_for_state("PlanReady")
    bench.confirm()
    before = bench.wait_for_job("run-t-preflight-1")["spec"]
    bench.patch("trainingrun", "run", {"spec": {"suspend": True}})
    bench.wait_for_state("Suspended")
    # The state is written first, and tells our hold from another's.
    bench.wait(lambda: bench.get("job", "run-t-preflight-1")["spec"] == {**before, "suspend": True})
    bench.patch("trainingrun", "run", {"spec": {"suspend": False}})
    bench.wait_for_state("Starting")
    bench.wait(lambda: bench.get("job", "run-t-preflight-1")["spec"]["suspend"] is False)


def test_a_run_made_anew_waits_for_the_pods_of_the_old_one(bench: Any) -> None:
    bench.run()
    bench.wait_for_state("PlanReady")
    bench.confirm()
    job = bench.wait_for_job("run-t-preflight-1")
    bench.pod_of(job)
    bench.delete("trainingrun", "run")
    bench.delete("job", "run-t-preflight-1", "--cascade=background")
    bench.delete("configmap", "run-t-plan")
    bench.run()
    bench.wait_for_state("PlanReady")
    bench.confirm()
    bench.wait(lambda: condition(bench.status(), "Progressing")["reason"] == "WaitingForPods")
    assert bench.jobs() == []
    bench.delete("pod", "run-t-preflight-1-0-x", "--force", "--grace-period=0")
    bench.wait_for_job("run-t-preflight-1")


def test_a_tampered_plan_stops_the_run(bench: Any) -> None:
    bench.run()
    bench.wait_for_state("PlanReady")
    bench.confirm()
    bench.wait_for_job("run-t-preflight-1")
    stored = bench.get("configmap", "run-t-plan")
    bench.delete("configmap", "run-t-plan")
    stored["data"]["jobs.json"] = stored["data"]["jobs.json"].replace("mark-trainer", "evil-trainer")
    kept = {key: stored["metadata"][key] for key in ("name", "labels", "ownerReferences")}
    bench.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": kept, "data": stored["data"], "immutable": True})
    bench.patch("trainingrun", "run", {"spec": {"suspend": True}})
    status = bench.wait_for_state("Failed")
    assert condition(status, "Stalled")["reason"] == "PlanTampered"
    assert bench.jobs() == []


def test_a_job_deleted_by_hand_is_not_silent(bench: Any) -> None:
    bench.run(maxAttempts=1)
    bench.wait_for_state("PlanReady")
    bench.confirm()
    bench.wait_for_job("run-t-preflight-1")
    bench.wait(lambda: bench.status().get("stages"))
    bench.delete("job", "run-t-preflight-1")
    status = bench.wait_for_state("Failed")
    assert condition(status, "Stalled")["reason"] == "JobVanished"


def test_a_success_without_digests_is_none(bench: Any) -> None:
    bench.run(maxAttempts=1)
    bench.wait_for_state("PlanReady")
    bench.confirm()
    bench.finish("run-t-preflight-1")
    bench.finish("run-t-data-prep-1")
    status = bench.wait_for_state("Failed")
    assert condition(status, "Stalled")["reason"] == "NoResult"


def test_only_the_status_is_ever_ours(bench: Any) -> None:
    bench.run()
    bench.wait_for_state("PlanReady")
    fields = bench.get("trainingrun", "run", "--show-managed-fields")["metadata"]["managedFields"]
    ours = [entry for entry in fields if entry["manager"].startswith("mark-")]
    assert ours and all(entry["subresource"] == "status" and list(entry["fieldsV1"]) == ["f:status"] for entry in ours)
    assert not [entry for entry in fields if "kopf" in entry["manager"]]


def test_a_quiet_run_is_not_written(bench: Any) -> None:
    bench.run()
    bench.wait_for_state("PlanReady")
    time.sleep(0.5)
    before = bench.get("trainingrun", "run")["metadata"]["resourceVersion"]
    time.sleep(3)
    assert bench.get("trainingrun", "run")["metadata"]["resourceVersion"] == before
