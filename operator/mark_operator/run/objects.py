"""Rendered objects of a run as plain dicts, in the order of a manifest, so that code, golden file and
`kubectl get -o yaml` look alike."""

from collections.abc import Mapping
from typing import Any

from mark_crds import names
from mark_crds.job_output import ExitCode

from mark_operator.run.means import Means
from mark_operator.run.pod import pod_spec
from mark_operator.seen import Body, RunKey


def job_template(means: Means, stage: str) -> Body:
    """The Job of the stage's first attempt, without what is known only at its creation: uid, attempt, owner."""
    key = means.key
    labels = _labels(key, stage)
    queue = {names.QUEUE_LABEL: means.spec.queue_name} if means.spec.queue_name else {}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": names.job_name(key.kind, key.name, stage, 1),
            "namespace": key.namespace,
            "labels": {**labels, **queue},
        },
        "spec": {
            "completionMode": "Indexed",
            "completions": means.nodes(stage),
            "parallelism": means.nodes(stage),
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "activeDeadlineSeconds": means.spec.active_deadline_seconds,
            "podFailurePolicy": {"rules": _failure_rules()},
            "template": {
                "metadata": {"labels": labels},
                "spec": pod_spec(means, stage),
            },
        },
    }


def service(key: RunKey, name: str) -> Body:
    """The headless Service of a run with several nodes, under the name that its plan gives to Pods.
    Names resolve before the Pods are ready, so ranks find each other at once."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": key.namespace,
            "labels": {names.KIND_LABEL: key.kind, names.RUN_LABEL: key.name},
        },
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {names.KIND_LABEL: key.kind, names.RUN_LABEL: key.name},
        },
    }


def bind(template: Body, *, kind: str, uid: str, attempt: int) -> Body:
    """The Job of one attempt: the planned template with the run's uid, the attempt and the owner filled in, nothing
    else changed."""
    metadata, spec = template["metadata"], template["spec"]
    labels = metadata["labels"]
    run, stage = labels[names.RUN_LABEL], labels[names.STAGE_LABEL]
    late = {names.RUN_UID_LABEL: uid, names.ATTEMPT_LABEL: str(attempt)}
    name = names.job_name(kind, run, stage, attempt)
    pod = spec["template"]
    suspend = {"suspend": True} if names.QUEUE_LABEL in labels else {}
    return owned(
        {
            **template,
            "metadata": {**metadata, "name": name, "labels": {**labels, **late}},
            "spec": {
                **spec,
                **suspend,
                "template": {
                    "metadata": {**pod["metadata"], "labels": {**pod["metadata"]["labels"], **late}},
                    "spec": {**pod["spec"], "containers": [_bind_container(pod["spec"], name, uid, attempt)]},
                },
            },
        },
        kind=kind,
        run=run,
        uid=uid,
    )


def owned(body: Body, *, kind: str, run: str, uid: str) -> Body:
    """The object with the run as its owner.
    It does not block the owner's deletion: that would need rights on finalizers."""
    owner = {"apiVersion": names.API_VERSION, "kind": kind, "name": run, "uid": uid, "controller": True}
    return {**body, "metadata": {**body["metadata"], "ownerReferences": [owner]}}


def pod_of(job: Body) -> Body:
    """One Pod as the Job controller would make it, for a dry run."""
    template, metadata = job["spec"]["template"], job["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{metadata['name']}-plan",
            "namespace": metadata["namespace"],
            "labels": template["metadata"]["labels"],
        },
        "spec": template["spec"],
    }


def _bind_container(pod_spec: Mapping[str, Any], name: str, uid: str, attempt: int) -> Body:
    container: Body = pod_spec["containers"][0]
    arguments = [*container["args"], "--run-uid", uid, "--attempt", str(attempt)]
    subdomain = pod_spec.get("subdomain")
    if subdomain is None:
        return {**container, "args": arguments}
    # Which Pod the ranks meet at depends on the attempt, because Pods are named after the Job.
    meeting = {"name": "MASTER_ADDR", "value": f"{name}-0.{subdomain}"}
    return {**container, "args": arguments, "env": [*container["env"], meeting]}


def _labels(key: RunKey, stage: str) -> dict[str, str]:
    return {names.KIND_LABEL: key.kind, names.RUN_LABEL: key.name, names.STAGE_LABEL: stage}


def _failure_rules() -> list[Body]:
    # The first rule that matches wins: what the trainer says of itself comes before what happened to its Pod.
    # STOPPED has no rule: so end the Pods of a Job that is suspended, and rules, unlike the count of failures, judge
    # them too.
    codes = (ExitCode.USER_MISTAKE, ExitCode.BAD_DATA)
    by_code = [_fail_on_code(int(code)) for code in codes]
    disrupted: Body = {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    return [*by_code, disrupted, _fail_on_code(int(ExitCode.MACHINE_TROUBLE))]


def _fail_on_code(code: int) -> Body:
    return {
        "action": "FailJob",
        "onExitCodes": {"containerName": names.TRAINER_CONTAINER, "operator": "In", "values": [code]},
    }
