"""A checkpoint is whole or passed over."""

import logging
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from mark_trainer import checkpoints

WORK = {"baseDigest": "a", "settingsDigest": "b"}


def keep(folder: Path, step: int, loss: float | None = None) -> Path:
    staged = folder / f".staged-{step}"
    staged.mkdir(parents=True)
    (staged / "weights").write_text(f"weights of {step}")
    (staged / "trainer_state.json").write_text("{}")
    return checkpoints.publish(staged, folder, step, WORK, loss)


def test_the_last_two_are_kept_and_the_newest_is_taken(tmp_path: Path) -> None:
    for step in (9, 10, 11):
        keep(tmp_path, step)
    assert {path.name for path in tmp_path.iterdir()} == {"step-10", "step-11"}
    found = checkpoints.newest_verified(tmp_path, WORK)
    assert found is not None and checkpoints.step_of(found) == 11


def test_the_best_has_the_lowest_loss_that_is_a_number(tmp_path: Path) -> None:
    for step, loss in enumerate((1.0, 2.0, math.nan, -math.inf, 3.0, None), start=1):
        keep(tmp_path, step, loss)
    assert checkpoints.best(tmp_path) == {"step": 1, "loss": 1.0}
    assert {path.name for path in tmp_path.iterdir()} == {"step-1", "step-5", "step-6"}


def tampered(path: Path) -> None:
    (path / "weights").write_text("others")


def cut(path: Path) -> None:
    (path / "weights").unlink()


def unsealed(path: Path) -> None:
    (path / "manifest.json").unlink()


def added(path: Path) -> None:
    (path / "more").write_text("weights of nobody")


def with_manifest(text: str) -> Callable[[Path], None]:
    """Puts another text in the place of the manifest."""

    def harm(path: Path) -> None:
        (path / "manifest.json").write_text(text)

    return harm


NO_MANIFESTS = {
    "cut off": '{"files": ',
    "empty object": "{}",
    "list": "[]",
    "null": "null",
    "no provenance": '{"files": {}}',
    "no files": '{"provenance": {}}',
    "list of files": '{"files": [], "provenance": {}}',
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize(
    "harm",
    [tampered, cut, unsealed, added, *map(with_manifest, NO_MANIFESTS.values())],
    ids=["tampered", "cut", "unsealed", "added", *NO_MANIFESTS],
)
def test_a_harmed_checkpoint_is_passed_over_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, harm
) -> None:
    keep(tmp_path, 1)
    harm(keep(tmp_path, 2))
    with caplog.at_level(logging.WARNING):
        found = checkpoints.newest_verified(tmp_path, WORK)
    assert found is not None and found.name == "step-1"
    assert "step-2" in caplog.text
    keep(tmp_path, 3, loss=1.0)
    assert checkpoints.best(tmp_path) == {"step": 3, "loss": 1.0}


def test_a_half_written_one_does_not_count(tmp_path: Path) -> None:
    keep(tmp_path, 1)
    (tmp_path / ".staged-2").mkdir()
    (tmp_path / "checkpoint-3").mkdir()
    found = checkpoints.newest_verified(tmp_path, WORK)
    assert found is not None and found.name == "step-1"


def test_a_checkpoint_of_other_work_is_passed_over(tmp_path: Path) -> None:
    keep(tmp_path, 1)
    assert checkpoints.newest_verified(tmp_path, {**WORK, "settingsDigest": "c"}) is None


def test_none_is_no_error(tmp_path: Path) -> None:
    assert checkpoints.newest_verified(tmp_path / "absent", WORK) is None


def test_the_same_step_is_replaced(tmp_path: Path) -> None:
    tampered(keep(tmp_path, 1))
    assert checkpoints.newest_verified(tmp_path, WORK) is None
    keep(tmp_path, 1)
    assert checkpoints.newest_verified(tmp_path, WORK) is not None
