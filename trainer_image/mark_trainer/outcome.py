"""What a finished stage leaves in the workspace, and how a later attempt or a later run finds it.

It must not run a stage.
"""

from datetime import UTC, datetime
from typing import Any

from mark_crds import names
from mark_crds.job_input import canonical_json
from mark_crds.job_output import Adopted, Artifact, Result

from mark_trainer.failures import BadData, MachineTrouble
from mark_trainer.publish import file_digest, verify_folder
from mark_trainer.workspace import Work, Workspace, read_json, write_json

_SHORTENED = " ..."


def termination_message(result: Result) -> str:
    """The Result as JSON, cut to what Kubernetes keeps: first the end of the sentence, then the last measures."""
    limit = names.TERMINATION_MESSAGE_LIMIT_BYTES
    value = result.to_dict()
    excess = _size(value) - limit
    if excess > 0:
        # Characters that JSON escapes take more room than their UTF-8 bytes, so shorten until it fits.
        text = value["message"].encode()
        while excess > 0 and text:
            text = text[: max(0, len(text) - max(excess, 16) - len(_SHORTENED))]
            value["message"] = text.decode(errors="ignore") + _SHORTENED
            excess = _size(value) - limit
    while _size(value) > limit and value.get("measures"):
        value["measures"] = value["measures"][:-1]
    return canonical_json(value)


def adopt_own_result(work: Work) -> Result | None:
    """The result of this very stage of this run, when an earlier attempt was killed after it published everything."""
    if work.stage == "preflight":
        return None
    result = work.result_of(work.stage)
    return result if result is not None and _verifies(work, result.artifacts) else None


def check_earlier(work: Work) -> None:
    """Read again what the run's earlier stages published, apart from the collection, which is shared and may have moved
    on; raises BadData, naming it, when it is not what they reported."""
    stages = work.job_input.stages
    for stage in stages[: stages.index(work.stage)] if work.stage in stages else ():
        result = work.result_of(stage)
        for artifact in result.artifacts if result is not None else ():
            if artifact.kind != "collection" and not _artifact_verifies(work, artifact):
                raise BadData(
                    "DigestDiffers",
                    f"{artifact.path}: is no longer what {stage} published; somebody changed it. Create a new run",
                )


def checked(work: Work, result: Result) -> Result:
    """The result of a stage whose every artifact was read again from the disk and has the digest that it reported;
    raises MachineTrouble, naming it, when one has not."""
    for artifact in result.artifacts:
        if not _artifact_verifies(work, artifact):
            raise MachineTrouble(
                "ArtifactDiffers",
                f"{artifact.path}: {work.stage} reported digest {artifact.digest[:12]}, which what lies there has not; "
                "the next attempt writes it again",
            )
    return result


def keep_result(work: Work, result: Result) -> None:
    """Record the stage as done and, after the run's last stage, the whole run."""
    if work.stage == "preflight":
        return
    write_json(work.workspace.results_folder(work.run_uid) / f"{work.stage}.json", result.to_dict())
    stages = work.job_input.stages
    if work.stage != stages[-1]:
        return
    results = [found.to_dict() for stage in stages if (found := work.result_of(stage)) is not None]
    write_json(
        work.workspace.completed_file(work.job_input.replay_key),
        {
            "formatVersion": 1,
            "runUid": work.run_uid,
            "finished": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "datasetDigest": _dataset_digest(results),
            "results": results,
        },
    )


def see_completed(work: Work) -> tuple[Adopted, tuple[Artifact, ...]] | None:
    """The earlier run that finished the same work, when what it published is still whole."""
    path = work.workspace.completed_file(work.job_input.replay_key)
    if not path.exists():
        return None
    value = read_json(path, work.workspace.relative(path))
    results = [Result.model_validate(result) for result in value["results"]]
    artifacts = tuple(artifact for result in results for artifact in result.artifacts)
    # A collection is shared and may have moved on since; what the run made from it has not.
    kept = tuple(artifact for artifact in artifacts if artifact.kind != "collection")
    if not _verifies(work, kept):
        return None
    adopted = Adopted.model_validate(
        {key: value[key] for key in ("runUid", "finished", "datasetDigest") if value.get(key) is not None}
    )
    return adopted, kept


def _verifies(work: Work, artifacts: tuple[Artifact, ...]) -> bool:
    return all(_artifact_verifies(work, artifact) for artifact in artifacts)


def _artifact_verifies(work: Work, artifact: Artifact) -> bool:
    if artifact.kind == "collection":
        from mark_trainer.collection import recorded_digest

        return recorded_digest(work) == artifact.digest
    return _path_verifies(work.workspace, artifact)


def _path_verifies(workspace: Workspace, artifact: Artifact) -> bool:
    path = workspace.path(artifact.path)
    try:
        digest = verify_folder(path, artifact.path) if path.is_dir() else file_digest(path)
    except (BadData, FileNotFoundError):
        return False
    return digest == artifact.digest


def _dataset_digest(results: list[dict[str, Any]]) -> str | None:
    artifacts = [artifact for result in results for artifact in result.get("artifacts", [])]
    return next((artifact["digest"] for artifact in artifacts if artifact["kind"] == "dataset"), None)


def _size(value: dict[str, Any]) -> int:
    return len(canonical_json(value).encode())
