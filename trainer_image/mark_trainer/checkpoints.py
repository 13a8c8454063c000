"""Checkpoints that are whole or not there: sealed with digests, made visible by one rename, verified before use.

The last ones are kept, and the one of the lowest loss. It must not know what the files in a checkpoint mean.
"""

import logging
import math
import shutil
from pathlib import Path
from typing import Any

from mark_trainer.failures import BadData
from mark_trainer.publish import MANIFEST, provenance_of, verify_folder, write_manifest
from mark_trainer.workspace import sync_folder

KEEP = 2
PREFIX = "step-"

log = logging.getLogger(__name__)


def publish(staged: Path, folder: Path, step: int, provenance: dict[str, str], loss: float | None = None) -> Path:
    """Seals a written checkpoint, manifest last, makes it visible as `step-N`, and drops old ones.

    `loss`, in nats a token on held-out rows, is what tells the best one; without it only the last ones are kept.
    """
    target = folder / f"{PREFIX}{step}"
    write_manifest(staged, {"kind": "checkpoint", "step": step, "loss": loss, **provenance})
    if target.exists():
        shutil.rmtree(target)
    staged.rename(target)
    sync_folder(folder)
    lowest = best(folder)
    for older in _by_step(folder)[KEEP:]:
        if lowest is None or step_of(older) != lowest["step"]:
            shutil.rmtree(older)
    return target


def best(folder: Path) -> dict[str, Any] | None:
    """Step and loss of the checkpoint with the lowest loss, the earlier of equals; None where none was measured."""
    measured = [(loss, step_of(path)) for path in _by_step(folder) if (loss := _loss(path)) is not None]
    loss, step = min(measured, default=(None, None))
    return None if step is None else {"step": step, "loss": loss}


def _loss(path: Path) -> float | None:
    """The checkpoint's loss; None where none was measured, it is not finite, or there is no sound manifest."""
    try:
        loss = provenance_of(path, path.name).get("loss")
    except BadData:  # the checkpoint is passed over when it would be used
        return None
    return loss if isinstance(loss, int | float) and math.isfinite(loss) else None


def newest_after_clearing(staged: Path, folder: Path, provenance: dict[str, str]) -> Path | None:
    """`newest_verified`, once what an earlier process left half-written is gone."""
    shutil.rmtree(staged, ignore_errors=True)
    return newest_verified(folder, provenance)


def newest_verified(folder: Path, provenance: dict[str, str]) -> Path | None:
    """The newest checkpoint that is whole and belongs to the same work; others are passed over with a warning."""
    for path in _by_step(folder):
        try:
            verify_folder(path, path.name)
        except BadData as error:
            log.warning("checkpoint passed over: %s", error.message)
            continue
        found = provenance_of(path, path.name)
        if any(found.get(name) != value for name, value in provenance.items()):
            log.warning("checkpoint passed over: %s/%s belongs to other data or settings", path.name, MANIFEST)
            continue
        return path
    return None


def step_of(path: Path) -> int:
    return int(path.name.removeprefix(PREFIX))


def _by_step(folder: Path) -> list[Path]:
    """The newest first."""
    if not folder.is_dir():
        return []
    paths = [
        path for path in folder.iterdir() if path.name.startswith(PREFIX) and path.name.removeprefix(PREFIX).isdigit()
    ]
    return sorted(paths, key=step_of, reverse=True)
