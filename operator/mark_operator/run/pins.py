"""What a plan's hash names without binding its content, field by field, and what binds the content instead."""

import re

from mark_crds.job_input import JobInput

from mark_operator.run.means import Means

PINNED_IMAGE = re.compile(r"@sha256:[0-9a-f]{64}$")
PUBLISHED_FOLDER = re.compile(r"/[0-9a-f]{64}$")


def unpinned(job_input: JobInput, means: Means) -> tuple[str, ...]:
    """One sentence for each field whose content can change while the hash stays."""
    return (
        *_image(means),
        *_base_model(job_input),
        *_documents(job_input),
        *_preferences(job_input),
        *_folders(job_input),
    )


def _image(means: Means) -> tuple[str, ...]:
    if PINNED_IMAGE.search(means.image):
        return ()
    field = "spec.image" if means.spec.image else "the setting trainerImage (image.trainer of the chart)"
    return (
        f"{field}: {means.image} is a tag, which its registry may move; nothing binds it. "
        "Name it by digest: NAME@sha256:...",
    )


def _base_model(job_input: JobInput) -> tuple[str, ...]:
    base = job_input.base_model
    if base is None or base.path is None:
        return ()
    return (
        f"spec.baseModel.path: the files of {base.path} are not part of the plan. Preflight names the digest of their "
        "configuration, and the adapter's manifest keeps the digest of the weights that it was trained on",
    )


def _documents(job_input: JobInput) -> tuple[str, ...]:
    stages, data = job_input.stages, job_input.data_prep
    if "ingest" in stages:
        return (
            f"spec.ingest.path: the documents in {job_input.ingest.path} are not part of the plan. Preflight "
            "counts them, and the dataset's manifest keeps the digest of the collection that they became",
        )
    if "dataPrep" in stages:
        return (
            f"spec.dataPrep.collection: the content of {data.collection} is not part of the plan. Preflight names its "
            "digest, and the dataset's manifest keeps it",
        )
    return ()


def _preferences(job_input: JobInput) -> tuple[str, ...]:
    preferences = job_input.rlhf.preferences
    if preferences is None or "reward" not in job_input.stages:
        return ()
    return (
        f"spec.rlhf.preferences.path: the judgements in {preferences.path} are not part of the plan. Preflight names "
        "the file's digest, and the reward model's manifest keeps it",
    )


def _folders(job_input: JobInput) -> tuple[str, ...]:
    """Folders that are not named by their own digest; preflight compares each published one with its manifest."""
    dataset, model = job_input.dataset, job_input.evaluated_model
    adapter = model.adapter_path if model is not None and model.adapter_digest is None else None
    named = (("spec.dataset.path", dataset.path if dataset else None), ("spec.model.path", adapter))
    return tuple(
        f"{field}: {path} is not named by its digest. Preflight compares its files with its manifest, whatever "
        "that says; name the published folder, which ends in the digest"
        for field, path in named
        if path is not None and not PUBLISHED_FOLDER.search(path)
    )
