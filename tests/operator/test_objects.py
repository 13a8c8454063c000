"""Every Job of every plan is bounded, restricted, labelled and owned."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mark_crds import names
from mark_operator.run.means import progress_audience
from mark_operator.run.objects import bind, pod_of
from run_builders import KEY, SETTINGS, UID, Body, evaluating, rendering_of, training

SPECS = st.builds(
    lambda stages, nodes, gpus, queue: training(
        stages=stages, resources={"nodes": nodes, "gpusPerNode": gpus}, **({"queueName": "q"} if queue else {})
    ),
    st.sampled_from([["ingest"], ["dataPrep", "lora"], ["ingest", "dataPrep", "lora", "reward", "ppo", "eval"]]),
    st.integers(1, 64),
    st.integers(0, 16),
    st.booleans(),
)


def container_of(job: Body) -> Body:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    found: Body = container
    return found


@given(spec=SPECS, attempt=st.integers(1, 99))
def test_every_job_is_safe_and_bounded(spec: Body, attempt: int) -> None:
    for template in rendering_of(spec).jobs:
        job = bind(template, kind=KEY.kind, uid=UID, attempt=attempt)
        check_shape(job)
        check_security(job)
        check_names(job, attempt)


def check_shape(job: Body) -> None:
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"]
    assert spec["backoffLimit"] == 0 and spec["podReplacementPolicy"] == "Failed" and spec["activeDeadlineSeconds"] > 0
    resources = container_of(job)["resources"]
    assert resources["limits"] == resources["requests"] and {"cpu", "memory"} <= set(resources["limits"])
    assert all(isinstance(value, str) for value in resources["limits"].values())
    assert all(rule["action"] == "FailJob" for rule in spec["podFailurePolicy"]["rules"])
    on_cpu = job["metadata"]["labels"][names.STAGE_LABEL] in ("preflight", "ingest", "dataPrep")
    assert not on_cpu or set(resources["limits"]) == {"cpu", "memory"}


def check_security(job: Body) -> None:
    pod, container = job["spec"]["template"]["spec"], container_of(job)
    assert pod["automountServiceAccountToken"] is False and pod["restartPolicy"] == "Never"
    assert (
        pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    )
    mine = container["securityContext"]
    assert (
        mine["readOnlyRootFilesystem"]
        and not mine["allowPrivilegeEscalation"]
        and mine["capabilities"] == {"drop": ["ALL"]}
    )
    assert {kind for volume in pod["volumes"] for kind in volume} <= {
        "name", "persistentVolumeClaim", "configMap", "projected", "emptyDir",
    }  # fmt: skip
    (token,) = [
        source["serviceAccountToken"]
        for volume in pod["volumes"]
        for source in volume.get("projected", {}).get("sources", [])
        if "serviceAccountToken" in source
    ]
    assert token["audience"] == progress_audience(KEY) and token["expirationSeconds"] <= 3600


def check_names(job: Body, attempt: int) -> None:
    metadata = job["metadata"]
    assert len(f"{metadata['name']}-{job['spec']['completions'] - 1}") <= 63
    labels = {**metadata["labels"], **job["spec"]["template"]["metadata"]["labels"]}
    assert labels[names.RUN_UID_LABEL] == UID and labels[names.ATTEMPT_LABEL] == str(attempt)
    (owner,) = metadata["ownerReferences"]
    assert owner["uid"] == UID and "blockOwnerDeletion" not in owner


def test_binding_adds_only_what_is_late() -> None:
    template = rendering_of(training()).jobs[1]
    before = copy.deepcopy(template)
    job = bind(template, kind=KEY.kind, uid=UID, attempt=3)
    assert template == before, "the planned template was changed in place"
    assert job["metadata"]["name"] == "contracts-t-data-prep-3"
    assert container_of(job)["args"][-4:] == ["--run-uid", UID, "--attempt", "3"]
    assert {key: value for key, value in job["spec"].items() if key != "template"} == {
        key: value for key, value in template["spec"].items() if key != "template"
    }


def test_a_job_with_a_queue_is_born_suspended_and_labelled() -> None:
    (first, *_) = rendering_of(training(queueName="research")).jobs
    job = bind(first, kind=KEY.kind, uid=UID, attempt=1)
    assert job["spec"]["suspend"] is True and job["metadata"]["labels"][names.QUEUE_LABEL] == "research"
    (plain, *_) = rendering_of(training()).jobs
    assert "suspend" not in bind(plain, kind=KEY.kind, uid=UID, attempt=1)["spec"]


def test_ranks_meet_at_the_first_pod_of_their_own_attempt() -> None:
    lora = rendering_of(training(resources={"nodes": 3})).jobs[2]
    job = bind(lora, kind=KEY.kind, uid=UID, attempt=2)
    environment = {item["name"]: item["value"] for item in container_of(job)["env"]}
    assert job["spec"]["template"]["spec"]["subdomain"] == "t-contracts"
    assert environment["MASTER_ADDR"] == "contracts-t-lora-2-0.t-contracts"


def test_an_evaluation_takes_one_node_and_its_gpus() -> None:
    key = KEY._replace(kind="EvalRun")
    jobs = rendering_of(evaluating(resources={"nodes": 4, "gpusPerNode": 2}), key=key).jobs
    assert [job["metadata"]["name"] for job in jobs] == ["contracts-e-preflight-1", "contracts-e-eval-1"]
    assert jobs[1]["spec"]["completions"] == 1
    assert container_of(jobs[1])["resources"]["limits"]["nvidia.com/gpu"] == "2"


def test_reward_and_ppo_take_one_node_and_one_gpu_at_most() -> None:
    for asked, limit in ((0, None), (1, "1"), (8, "1")):
        spec = training(stages=["dataPrep", "lora", "reward", "ppo"], resources={"nodes": 3, "gpusPerNode": asked})
        _, _, lora, *others = rendering_of(spec).jobs
        assert lora["spec"]["completions"] == 3
        for job in others:
            assert job["spec"]["completions"] == job["spec"]["parallelism"] == 1
            assert "subdomain" not in job["spec"]["template"]["spec"]
            assert container_of(job)["resources"]["limits"].get("nvidia.com/gpu") == limit


def test_the_tracker_s_key_goes_to_every_training_stage_and_to_no_other() -> None:
    tracking = {"wandb": {"mode": "online", "secretName": "tracker"}}
    jobs = rendering_of(training(stages=["dataPrep", "lora", "reward", "ppo", "eval"], tracking=tracking)).jobs
    with_key = [
        job["metadata"]["labels"][names.STAGE_LABEL]
        for job in jobs
        if any(item["name"] == "WANDB_API_KEY" for item in container_of(job)["env"])
    ]
    assert with_key == ["lora", "reward", "ppo"]


def test_a_pod_of_a_job_for_the_dry_run() -> None:
    (first, *_) = rendering_of(training()).jobs
    pod = pod_of(bind(first, kind=KEY.kind, uid=UID, attempt=1))
    assert pod["metadata"]["name"] == "contracts-t-preflight-1-plan" and pod["spec"] is not None


@pytest.mark.parametrize("url", [None, "https://here.svc:8443"])
def test_progress_is_asked_for_only_where_it_can_be_received(url: str | None) -> None:
    (first, *_) = rendering_of(training(), SETTINGS.model_copy(update={"progress_url": url})).jobs
    posts = [item["name"] for item in container_of(first)["env"] if item["name"].startswith("KUBEFLOW")]
    assert len(posts) == (3 if url else 0)
