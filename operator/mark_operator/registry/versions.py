"""The versions of a Model: entering one, judging one, and which of them is current."""

from mark_crds.registered_model import VERSIONS_KEPT, ModelVersion, RegisteredModelSpec, RegisteredModelStatus

from mark_operator.seen import Body


def status_of(model: Body) -> RegisteredModelStatus:
    """The status of a Model as it stands; empty for a new one."""
    return RegisteredModelStatus.model_validate(model.get("status") or {})


def spec_of(model: Body) -> RegisteredModelSpec:
    """The spec of a Model."""
    return RegisteredModelSpec.model_validate(model["spec"])


def enter(status: RegisteredModelStatus, version: ModelVersion) -> RegisteredModelStatus:
    """The status with this version as the newest; a version that is entered already stays as it is."""
    if any(known.digest == version.digest for known in status.versions):
        return status
    gives_way = version_that_gives_way(status)
    kept = tuple(known for known in status.versions if known is not gives_way)
    return status.model_copy(update={"versions": (*kept, version)})


def version_that_gives_way(status: RegisteredModelStatus) -> ModelVersion | None:
    """The version that a new one takes the place of: the oldest that nobody uses; none while there is room."""
    if len(status.versions) < VERSIONS_KEPT:
        return None
    return next(version for version in status.versions if version.digest != status.current)


def judge(status: RegisteredModelStatus, digest: str, changes: dict[str, object]) -> RegisteredModelStatus:
    """The status with an evaluation's verdict on one version."""
    versions = tuple(
        version.model_copy(update=changes) if version.digest == digest else version for version in status.versions
    )
    return status.model_copy(update={"versions": versions})


def with_current(status: RegisteredModelStatus, promoted: str) -> RegisteredModelStatus:
    """The status with its current version: the promoted one, else the newest that passed, else none."""
    passed = [version.digest for version in status.versions if version.passed]
    known = {version.digest for version in status.versions}
    current = promoted if promoted in known else (passed[-1] if passed and not promoted else "")
    return status.model_copy(update={"current": current})


def version_to_measure(status: RegisteredModelStatus) -> ModelVersion | None:
    """The current version, else the newest; none for a Model without versions."""
    current = next((version for version in status.versions if version.digest == status.current), None)
    return current or (status.versions[-1] if status.versions else None)
