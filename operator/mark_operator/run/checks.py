"""The prerequisites of a plan: each passed, failed or not checked, with the cure. It judges findings and asks
nobody."""

import fnmatch

from mark_crds.run import Check

from mark_operator import quantity
from mark_operator.messages import shorten
from mark_operator.quota import is_scoped, no_room_for_job
from mark_operator.run.plan import Rendering
from mark_operator.seen import Answer, Body, Findings


def check_all(rendering: Rendering, findings: Findings) -> tuple[Check, ...]:
    """All checks of a plan, in the order of a person's questions."""
    return (
        _image(rendering),
        _claim(rendering, findings),
        _service_account(rendering, findings),
        _gpu(rendering, findings),
        _quota(rendering, findings),
        *(_dry_run("job", stage, answer) for stage, answer in findings.jobs.items()),
        *(_dry_run("pod", stage, answer) for stage, answer in findings.pods.items()),
    )


def failures(checks: tuple[Check, ...]) -> str:
    """The failed checks in one sentence; empty when none failed."""
    return "; ".join(f"{check.name}: {check.message}" for check in checks if check.outcome == "Failed")


def _passed(name: str, message: str) -> Check:
    return Check(name=name, outcome="Passed", message=shorten(message))


def _failed(name: str, message: str) -> Check:
    return Check(name=name, outcome="Failed", message=shorten(message))


def _not_checked(name: str, message: str) -> Check:
    return Check(name=name, outcome="NotChecked", message=shorten(message))


def _image(rendering: Rendering) -> Check:
    image, settings = rendering.means.image, rendering.means.settings
    allowed = (settings.trainer_image, *settings.trainer_images)
    if any(fnmatch.fnmatchcase(image, pattern) for pattern in allowed):
        return _passed("image", f"{image} is allowed")
    return _failed(
        "image", f"spec.image: {image} is not one of the images that the administrator allows: {', '.join(allowed)}"
    )


def _claim(rendering: Rendering, findings: Findings) -> Check:
    name, answer = rendering.means.spec.workspace.claim_name, findings.claim
    if answer.outcome == "Missing":
        return _failed(
            "claim", f"spec.workspace.claimName: there is no PersistentVolumeClaim {name} in this namespace; create it"
        )
    if answer.outcome != "Found":
        return _not_checked("claim", answer.message)
    claim = answer.item
    nodes = max(rendering.means.nodes(stage) for stage in rendering.stages)
    modes = claim["spec"].get("accessModes", [])
    if "deletionTimestamp" in claim["metadata"]:
        return _failed(
            "claim", f"PersistentVolumeClaim {name} is being deleted; wait until it is gone and create it again"
        )
    if nodes > 1 and "ReadWriteMany" not in modes:
        return _failed(
            "claim",
            f"spec.resources.nodes is {nodes}, which needs a claim with ReadWriteMany; {name} has {', '.join(modes)}",
        )
    if not set(modes) & {"ReadWriteOnce", "ReadWriteOncePod", "ReadWriteMany"}:
        return _failed("claim", f"PersistentVolumeClaim {name} cannot be written to: it has {', '.join(modes)}")
    return _binding(name, claim, findings.storage_class)


def _binding(name: str, claim: Body, storage_class: Answer) -> Check:
    phase = claim.get("status", {}).get("phase", "Pending")
    if phase == "Bound":
        return _passed("claim", f"PersistentVolumeClaim {name} is bound")
    if phase == "Lost":
        return _failed(
            "claim", f"PersistentVolumeClaim {name} has lost its volume; restore the volume or use another claim"
        )
    if storage_class.outcome == "Found" and storage_class.item.get("volumeBindingMode") == "WaitForFirstConsumer":
        return _passed("claim", f"PersistentVolumeClaim {name} will be bound with the first Pod")
    return _not_checked(
        "claim", f"PersistentVolumeClaim {name} is not bound yet; its storage class may do so with the first Pod"
    )


def _service_account(rendering: Rendering, findings: Findings) -> Check:
    name, answer = rendering.means.settings.service_account_name, findings.service_account
    if answer.outcome == "Missing":
        return _failed("serviceAccount", f"there is no ServiceAccount {name} in this namespace; create it")
    if answer.outcome != "Found":
        return _not_checked("serviceAccount", answer.message)
    return _passed("serviceAccount", f"ServiceAccount {name} exists; its token is not mounted")


def _gpu(rendering: Rendering, findings: Findings) -> Check:
    means, answer = rendering.means, findings.nodes
    resource = means.resources.gpu_resource
    needed = max(means.gpus_per_node(stage) for stage in rendering.stages)
    if needed == 0:
        return _passed("gpu", "no stage asks for a GPU")
    if answer.outcome != "Found":
        return _not_checked("gpu", answer.message or "nodes could not be listed")
    offers = [int(quantity.parse(node["status"].get("allocatable", {}).get(resource, "0"))) for node in answer.items]
    if max(offers, default=0) >= needed:
        return _passed("gpu", f"{sum(offer >= needed for offer in offers)} nodes offer {needed} {resource} or more")
    most = max(offers, default=0)
    problem = (
        f"no node offers {needed} {resource}; the most is {most}. "
        "Lower spec.resources.gpusPerNode or correct gpuResource"
    )
    return _failed("gpu", problem) if means.settings.require_gpu_nodes else _not_checked("gpu", problem)


def _quota(rendering: Rendering, findings: Findings) -> Check:
    if findings.quotas.outcome != "Found" and findings.quotas.outcome != "Missing":
        return _not_checked("quota", findings.quotas.message)
    scoped = [body for body in findings.quotas.items if is_scoped(body)]
    plain = [body for body in findings.quotas.items if not is_scoped(body)]
    for body in plain:
        for job in rendering.jobs:
            problem = no_room_for_job(job, body)
            if problem:
                return _failed("quota", problem)
    if scoped:
        return _not_checked(
            "quota", f"ResourceQuota {scoped[0]['metadata']['name']} has scopes, which are not computed"
        )
    return _passed(
        "quota", "every ResourceQuota has room for the largest stage" if plain else "the namespace has no ResourceQuota"
    )


def _dry_run(what: str, stage: str, answer: Answer) -> Check:
    name = f"{what}.{stage}"
    if answer.outcome == "Refused":
        return _failed(name, f"the API server refuses the {what.capitalize()} of stage {stage}: {answer.message}")
    if answer.outcome != "Found":
        return _not_checked(name, answer.message)
    return _passed(name, f"the API server accepts the {what.capitalize()} of stage {stage}")
