"""One holder at a time; a holder without a heartbeat loses the lock."""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mark_trainer import locks
from mark_trainer.failures import Failure, MachineTrouble
from mark_trainer.locks import hold, see_holder
from mark_trainer.workspace import Work

MakeWork = Callable[..., Work]


def grow_old(work: Work, name: str = "chroma", seconds: float = 1000) -> None:
    path = work.workspace.locks_folder() / f"{name}.lock"
    stat = path.stat()
    os.utime(path, (stat.st_atime - seconds, stat.st_mtime - seconds))


def test_the_second_run_is_told_who_holds_the_lock(make_work: MakeWork) -> None:
    with (
        hold(make_work(run_uid="one"), "chroma", 0),
        pytest.raises(Failure, match=r"held by run legal/contracts \(uid one\), stage ingest"),
        hold(make_work(run_uid="two"), "chroma", 0),
    ):
        pass


def test_the_second_run_waits_until_the_first_is_done(make_work: MakeWork, monkeypatch: pytest.MonkeyPatch) -> None:
    first = hold(make_work(run_uid="one"), "chroma", 0)
    first.__enter__()
    monkeypatch.setattr(locks.time, "sleep", lambda seconds: first.__exit__(None, None, None))
    with hold(make_work(run_uid="two"), "chroma", 60):
        pass


def test_a_stale_lock_is_taken_over_and_its_old_holder_notices(
    make_work: MakeWork, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.05)
    one, two = make_work(run_uid="one"), make_work(run_uid="two")
    with hold(one, "chroma", 0) as old:
        # As if its node had been gone for a while: old, and no beat in between.
        monkeypatch.setattr(locks, "is_stale", lambda workspace, path, seconds: True)
        with hold(two, "chroma", 0) as new:
            assert "taking over chroma.lock from run legal/contracts (uid one)" in capsys.readouterr().out
            old._thread.join(2)
            with pytest.raises(MachineTrouble, match="took the lock over"):
                old.raise_if_lost()
            new.raise_if_lost()
    assert see_holder(one.workspace.locks_folder() / "chroma.lock") is None


def test_a_lock_that_was_taken_over_is_lost_at_once(make_work: MakeWork, monkeypatch: pytest.MonkeyPatch) -> None:
    with hold(make_work(run_uid="one"), "chroma", 0) as old:
        old.raise_if_lost()
        grow_old(make_work())
        with hold(make_work(run_uid="two"), "chroma", 0), pytest.raises(MachineTrouble, match="LockLost"):
            old.raise_if_lost()  # no heartbeat of 15 s came in between


@pytest.fixture
def bad_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Makes every beat of a lock fail, as a network file system does, until told otherwise; beats are fast."""
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.02)
    renew, bad = os.utime, False

    def utime(*arguments: Any) -> None:
        if bad:
            raise OSError(errno.ESTALE, "Stale file handle")
        renew(*arguments)

    def turn(to: bool) -> None:
        nonlocal bad
        bad = to

    monkeypatch.setattr(locks.os, "utime", utime)
    return turn


def test_a_beat_that_fails_is_tried_again(make_work: MakeWork, bad_disk: Callable[[bool], None]) -> None:
    work = make_work()
    with hold(work, "chroma", 0) as lock:
        bad_disk(True)
        path = work.workspace.locks_folder() / "chroma.lock"
        time.sleep(0.2)
        bad_disk(False)
        grow_old(work)
        deadline = time.monotonic() + 20
        while locks.is_stale(work.workspace, path):
            assert time.monotonic() < deadline, "no beat came again"
            time.sleep(0.02)
        lock.raise_if_lost()


def test_a_lock_that_cannot_be_kept_alive_counts_as_lost(
    make_work: MakeWork, bad_disk: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with hold(make_work(), "chroma", 0) as lock:
        bad_disk(True)
        lock.raise_if_lost()
        monkeypatch.setattr(locks, "STALE_SECONDS", 0.1)
        time.sleep(0.3)
        with pytest.raises(MachineTrouble, match="LockLost"):
            lock.raise_if_lost()


def test_age_is_told_by_the_volume_and_a_heartbeat_renews_it(make_work: MakeWork) -> None:
    work = make_work()
    path = work.workspace.locks_folder() / "chroma.lock"
    with hold(work, "chroma", 0):
        assert not locks.is_stale(work.workspace, path)
        grow_old(work)
        assert locks.is_stale(work.workspace, path)
        os.utime(path)
        assert not locks.is_stale(work.workspace, path)


def test_a_run_takes_over_what_its_own_killed_attempt_left(make_work: MakeWork) -> None:
    with hold(make_work(run_uid="one"), "chroma", 0) as lock:
        lock.keep()
    with hold(make_work(run_uid="one"), "chroma", 0):
        pass
    with hold(make_work(run_uid="two"), "chroma", 0):
        pass


def test_only_the_lock_that_was_judged_is_removed(make_work: MakeWork) -> None:
    work = make_work()
    with hold(work, "chroma", 0):
        path = work.workspace.locks_folder() / "chroma.lock"
        locks._remove_of(path, "the token of another lock")
        assert see_holder(path) is not None
    assert list(work.workspace.locks_folder().iterdir()) == []


def test_a_volume_without_hard_links_has_locks_too(make_work: MakeWork, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with (
        hold(make_work(run_uid="one"), "chroma", 0),
        pytest.raises(Failure, match="uid one"),
        hold(make_work(run_uid="two"), "chroma", 0),
    ):
        pass


@pytest.fixture
def clusters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Moves this process to the cluster of a name, as its operator's certificate authority tells it."""

    def move(name: str) -> None:
        path = tmp_path / f"{name}.crt"
        path.write_text(name)
        monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_CA_CERT", str(path))

    return move


DAY = 24 * 3600


@pytest.mark.parametrize(
    ("cluster", "idle_seconds", "taken"),
    [("ours", 100, False), ("ours", 1000, True), ("theirs", 1000, False), ("theirs", DAY - 60, False), ("theirs", DAY + 60, True)],
)
def test_a_claim_between_stages_holds_other_clusters_for_a_day(
    make_work: MakeWork, clusters: Callable[[str], None], cluster: str, idle_seconds: int, taken: bool
) -> None:
    clusters("ours")
    one, two = make_work(run_uid="one"), make_work(run_uid="two")
    with hold(one, "work", 0) as claim:
        claim.keep()
    grow_old(one, "work", idle_seconds)
    clusters(cluster)
    waiting = hold(two, "work", 0, stale_elsewhere_seconds=locks.STALE_CLAIM_SECONDS)
    if taken:
        with waiting:
            pass
        return
    words = r"of another cluster; .* remove locks/work\.lock" if cluster == "theirs" else "goes on when that one ends"
    with pytest.raises(Failure, match=words), waiting:
        pass


def test_its_own_next_stage_finds_its_claim_however_old(make_work: MakeWork, clusters: Callable[[str], None]) -> None:
    clusters("ours")
    with hold(make_work(run_uid="one"), "work", 0) as claim:
        claim.keep()
    grow_old(make_work(run_uid="one"), "work", 10 * DAY)
    with hold(make_work(run_uid="one"), "work", 0, stale_elsewhere_seconds=locks.STALE_CLAIM_SECONDS):
        pass
