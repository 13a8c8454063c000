"""`mark` against a real API server: the confirmation is one change, refusals say why, and users have only their rights."""

import json
from typing import Any

import cli_cases
import pytest
from control_plane import ApiServer
from mark_command import Done, mark

RUN = "contracts-lora"


class Cluster:
    """One namespace, one user, and one run whose status the test writes in the operator's place."""

    def __init__(self, server: ApiServer, namespace: str) -> None:
        self.server, self.namespace = server, namespace

    def mark(self, *words: str, user: str = "admin") -> Done:
        return mark(*words, "-n", self.namespace, "--kubeconfig", str(self.server.kubeconfig(user)))

    def apply(self, run: dict[str, Any]) -> None:
        metadata = {"name": run["metadata"]["name"], "namespace": self.namespace}
        body = {key: value for key, value in run.items() if key != "status"} | {"metadata": metadata}
        self.server.must("apply", "-f", "-", stdin=body)
        if "status" in run:
            self.write_status(run["status"])

    def write_status(self, status: dict[str, Any]) -> None:
        status = {**status, "observedGeneration": self.read()["metadata"]["generation"]}
        self.server.must(
            "patch", "trun", RUN, "-n", self.namespace, "--subresource=status", "--type=merge", "-p", json.dumps({"status": status})
        )  # fmt: skip

    def read(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            self.server.must("get", "trun", RUN, "-n", self.namespace, "-o", "json", "--show-managed-fields")
        )
        return found


@pytest.fixture
def cluster(api_server: ApiServer, namespace: str) -> Cluster:
    return Cluster(api_server, namespace)


def test_a_confirmation_is_one_change_bound_to_the_plan(cluster: Cluster) -> None:
    cluster.apply(cli_cases.planned_run())
    done = cluster.mark("confirm", RUN)
    assert (done.code, done.err) == (0, done.err)
    run = cluster.read()
    assert run["metadata"]["generation"] == 2
    written = {key: run["spec"][key] for key in ("dryRun", "confirm", "confirmPlan", "confirmedBy")}
    assert written == {"dryRun": False, "confirm": True, "confirmPlan": cli_cases.HASH, "confirmedBy": "admin"}
    (mine,) = [entry for entry in run["metadata"]["managedFields"] if entry["manager"] == "mark-cli"]
    assert set(mine["fieldsV1"]["f:spec"]) == {"f:dryRun", "f:confirm", "f:confirmPlan", "f:confirmedBy"}
    assert "dataPrep" in done.out
    assert "confirmed: contracts-lora runs the plan 3f9a1c27b8de as admin" in done.err


def test_a_second_confirmation_changes_nothing(cluster: Cluster) -> None:
    cluster.apply(cli_cases.planned_run())
    cluster.mark("confirm", RUN)
    cluster.write_status(cli_cases.planned_run()["status"])
    done = cluster.mark("confirm", RUN)
    assert (done.code, cluster.read()["metadata"]["generation"]) == (0, 2)
    assert "is confirmed already" in done.err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--plan", cli_cases.HASH), 0),
        (("--plan", cli_cases.HASH[:12]), 0),
        (("--plan", "f" * 12), 3),
        (("--plan", "3f9"), 2),
    ],
    ids=["full hash", "first digits", "another hash", "too short"],
)
def test_a_confirmation_may_name_its_plan(cluster: Cluster, words: tuple[str, ...], code: int) -> None:
    cluster.apply(cli_cases.planned_run())
    assert cluster.mark("confirm", RUN, *words).code == code
    assert cluster.read()["spec"]["confirm"] is (code == 0)


def test_failed_checks_are_not_confirmed(cluster: Cluster) -> None:
    cluster.apply(cli_cases.refused_run())
    done = cluster.mark("confirm", RUN)
    assert (done.code, cluster.read()["spec"]["confirm"]) == (3, False)
    assert "quota: gpus leaves 0 of requests.nvidia.com/gpu" in done.err
    assert cluster.mark("plan", RUN).code == 1


def test_an_ended_run_is_not_confirmed(cluster: Cluster) -> None:
    cluster.apply(cli_cases.planned_run(state="Cancelled"))
    done = cluster.mark("confirm", RUN)
    assert (done.code, "has ended: Cancelled" in done.err) == (3, True)


def test_the_api_servers_refusal_names_field_and_cure(cluster: Cluster) -> None:
    run = cli_cases.planned_run()
    run["spec"]["lora"]["epochs"] = 0
    cluster.apply(run)
    done = cluster.mark("confirm", RUN)
    assert done.code == 3
    assert "spec.lora.epochs: is 0, which trains nothing; set at least 1 before confirming" in done.err


def test_a_plan_of_an_older_spec_is_not_shown(cluster: Cluster) -> None:
    cluster.apply(cli_cases.planned_run())
    cluster.server.must(
        "patch", "trun", RUN, "-n", cluster.namespace, "--type=merge", "-p", '{"spec":{"lora":{"rank":8}}}'
    )
    done = cluster.mark("plan", RUN)
    assert (done.code, "is older than its spec" in done.err) == (4, True)


def test_a_run_that_nobody_has_planned_says_so(cluster: Cluster) -> None:
    cluster.apply(cli_cases.new_run())
    done = cluster.mark("plan", RUN, "--wait", "0.1")
    assert (done.code, "the operator has not planned contracts-lora yet" in done.err) == (4, True)
    assert "has not looked at this run yet" in cluster.mark("status", RUN).out


def test_a_cancelled_run_keeps_dry_run_and_says_what_happens(cluster: Cluster) -> None:
    cluster.apply(cli_cases.running_run())
    done = cluster.mark("cancel", RUN)
    assert (done.code, "120 s to save a checkpoint" in done.err) == (0, True)
    spec = cluster.read()["spec"]
    assert (spec["confirm"], spec["dryRun"]) == (False, False)


def test_cancelling_what_is_not_confirmed_changes_nothing(cluster: Cluster) -> None:
    cluster.apply(cli_cases.planned_run())
    done = cluster.mark("cancel", RUN)
    assert (done.code, cluster.read()["metadata"]["generation"]) == (0, 1)
    assert "is not confirmed" in done.err


@pytest.mark.parametrize(
    ("run", "code"), [(cli_cases.succeeded_run(), 0), (cli_cases.failed_run(), 1)], ids=["good", "bad"]
)
def test_following_ends_with_the_runs_outcome(cluster: Cluster, run: dict[str, Any], code: int) -> None:
    cluster.apply(run)
    done = cluster.mark("status", RUN, "--watch")
    assert done.code == code
    assert f"state {run['status']['state']}" in done.out


def test_lists_and_data_for_programs(cluster: Cluster) -> None:
    assert "no runs in the namespace" in cluster.mark("status").err
    cluster.apply(cli_cases.planned_run())
    assert RUN in cluster.mark("status").out
    assert json.loads(cluster.mark("plan", RUN, "-o", "json").out)["hash"] == cli_cases.HASH
    assert json.loads(cluster.mark("status", "-o", "json").out)[0]["kind"] == "TrainingRun"
    assert "no models in the namespace" in cluster.mark("models").err


def test_a_name_of_the_other_kind_is_pointed_at(cluster: Cluster) -> None:
    cluster.apply(cli_cases.planned_run())
    done = cluster.mark("status", f"erun/{RUN}")
    assert (done.code, f"write trun/{RUN}" in done.err) == (4, True)
    assert "`mark status` lists the runs" in cluster.mark("status", "nothing").err
    assert cluster.mark("status", f"pod/{RUN}").code == 2


def test_a_user_without_rights_is_told_so(cluster: Cluster) -> None:
    cluster.apply(cli_cases.planned_run())
    done = cluster.mark("confirm", RUN, user="stranger")
    assert (done.code, 'User "stranger" cannot get' in done.err) == (4, True)


def test_artifacts_that_do_not_exist_are_named(cluster: Cluster) -> None:
    cluster.apply(cli_cases.running_run())
    done = cluster.mark("get", RUN, "adapter")
    assert (done.code, "has made no adapter; it has made: nothing" in done.err) == (4, True)
    assert "--stage eval: has not begun" in cluster.mark("logs", RUN, "--stage", "eval").err
    assert "the newest attempt of lora is 2" in cluster.mark("logs", RUN, "--attempt", "3").err


def test_settings_come_from_the_operators_config_map(cluster: Cluster) -> None:
    labels = {"app.kubernetes.io/name": "mark-operator"}
    body = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "mark-operator", "labels": labels},
        "data": {"settings.json": '{"trainerImage": "localhost/mark-trainer:dev"}'},
    }
    cluster.server.must("apply", "-n", cluster.namespace, "-f", "-", stdin=body)
    done = cluster.mark("settings", "--operator-namespace", cluster.namespace)
    assert (done.code, done.out) == (0, "trainerImage: localhost/mark-trainer:dev\n")
    missing = cluster.mark("settings", "--operator-namespace", "default")
    assert (missing.code, "--operator-namespace" in missing.err) == (4, True)


def test_a_freeze_is_made_changed_and_ended(cluster: Cluster) -> None:
    labels = {"app.kubernetes.io/name": "mark-operator"}
    settings = json.dumps({"operatorNamespace": cluster.namespace})
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mark-operator", "labels": labels}}
    cluster.server.must("apply", "-n", cluster.namespace, "-f", "-", stdin={**body, "data": {"settings.json": settings}})
    where = ("--operator-namespace", cluster.namespace)
    for reason in ("storage maintenance", "still maintenance"):
        assert cluster.mark("freeze", "--reason", reason, *where).code == 0
        found = json.loads(cluster.server.must("get", "configmap", "mark-freeze", "-n", cluster.namespace, "-o", "json"))
        assert found["data"]["frozen"] == "true" and found["data"]["reason"].startswith(f"{reason} (admin, ")
    assert cluster.mark("unfreeze", *where).code == 0 and cluster.mark("unfreeze", *where).code == 0
    assert cluster.server.kubectl("get", "configmap", "mark-freeze", "-n", cluster.namespace).returncode != 0
    assert cluster.mark("freeze", "--reason", "x", *where, user="stranger").code == 4
