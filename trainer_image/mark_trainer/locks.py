"""One writer at a time on a shared volume, across Pods, nodes and clusters: a lock file with holder and heartbeat.

It must not rely on clocks agreeing: ages are told by the volume's own time stamps. A cluster is told by the certificate
authority that its operator gives to every Pod.
"""

import errno
import hashlib
import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mark_crds.job_output import LOCKED

from mark_trainer.failures import MachineTrouble, Stopped
from mark_trainer.progress import SERVER_CA
from mark_trainer.workspace import Work, Workspace, write_json

HEARTBEAT_SECONDS = 15.0
STALE_SECONDS = 120.0
# For a claim that stays between stages: its next stage may stand in another cluster's queue.
STALE_CLAIM_SECONDS = 24 * 3600.0
_LOOK_AGAIN_SECONDS = 1.0
# What some network file systems answer; they can still create a file only if it is absent.
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)


@dataclass(frozen=True)
class Holder:
    """Who holds a lock."""

    run_uid: str
    name: str
    stage: str
    token: str
    cluster: str

    @property
    def sentence(self) -> str:
        return f"run {self.name} (uid {self.run_uid}), stage {self.stage}"


class LockLost(MachineTrouble):
    """Somebody took the lock over, so this process was taken for dead."""


class Lock:
    """A lock that is held. `raise_if_lost` before anything that only the holder may do."""

    def __init__(self, path: Path, token: str) -> None:
        self._path = path
        self._token = token
        self._released = threading.Event()
        self._kept = False
        self._lost = False
        self._last_beat = time.monotonic()
        self._thread = threading.Thread(target=self._keep_alive, name=f"lock {path.name}", daemon=True)
        self._thread.start()

    def raise_if_lost(self) -> None:
        self._beat()
        if self._lost:
            raise LockLost(
                "LockLost",
                f"{self._path.name}: another run took the lock over, or may have, after a long pause of this one",
            )

    def keep(self) -> None:
        """Leave the lock behind on release, for the run's next stage; without a heartbeat it goes stale by itself."""
        self._kept = True

    def release(self) -> None:
        self._released.set()
        self._thread.join()
        if not self._kept and _token_of(self._path) == self._token:
            self._path.unlink(missing_ok=True)

    def _keep_alive(self) -> None:
        while not self._lost and not self._released.wait(HEARTBEAT_SECONDS):
            self._beat()

    def _beat(self) -> None:
        """Show a sign of life, or notice that it is too late for one."""
        try:
            if _token_of(self._path) != self._token:
                self._lost = True
                return
            os.utime(self._path)
            self._last_beat = time.monotonic()
        except OSError as error:
            # A network file system has bad moments, and the lock may go at this very one: the next beat tells.
            print(f"{self._path.name}: no sign of life could be given ({error})", flush=True)
            if time.monotonic() - self._last_beat > STALE_SECONDS:
                self._lost = True


@contextmanager
def hold(
    work: Work, name: str, wait_seconds: float, *, stale_elsewhere_seconds: float = STALE_SECONDS
) -> Iterator[Lock]:
    """Hold the workspace's lock of this name; waits for another run, and takes over a lock without a heartbeat.

    `stale_elsewhere_seconds` says how long a run of another cluster may go without one. Within a cluster the operator
    sees to it that a run's Pods are gone before another run of its name starts.
    """
    path = work.workspace.locks_folder() / f"{name.replace('/', '-')}.lock"
    token = uuid.uuid4().hex
    deadline = time.monotonic() + wait_seconds
    while not _take(path, work, token):
        holder = see_holder(path)
        if holder is None:
            time.sleep(_LOOK_AGAIN_SECONDS / 20)
            continue
        elsewhere = holder.cluster != _this_cluster()
        stale_seconds = stale_elsewhere_seconds if elsewhere else STALE_SECONDS
        if holder.run_uid == work.run_uid or is_stale(work.workspace, path, stale_seconds):
            # A run has one Pod at a time, so a lock of its own is one that an earlier Pod left behind.
            if holder.run_uid != work.run_uid:
                print(f"taking over {path.name} from {holder.sentence}: no sign of life", flush=True)
            _remove_of(path, holder.token)
        elif time.monotonic() > deadline:
            raise Stopped(LOCKED, _in_words(path, holder, elsewhere))
        else:
            work.raise_if_stopped()
            time.sleep(_LOOK_AGAIN_SECONDS)
    lock = Lock(path, token)
    try:
        yield lock
    finally:
        lock.release()


def see_holder(path: Path) -> Holder | None:
    """Who holds the lock, or None when it is free."""
    value = _read(path)
    if value is None:
        return None
    return Holder(value["runUid"], value["name"], value["stage"], value["token"], value.get("cluster", ""))


def is_stale(workspace: Workspace, path: Path, seconds: float = STALE_SECONDS) -> bool:
    """Whether the lock's holder has shown no sign of life for too long."""
    probe = workspace.locks_folder() / f".now-{uuid.uuid4().hex}"
    probe.touch()
    try:
        return probe.stat().st_mtime - path.stat().st_mtime > seconds
    except FileNotFoundError:
        return False
    finally:
        probe.unlink()


def _in_words(path: Path, holder: Holder, elsewhere: bool) -> str:
    cure = f" If it is gone for good, remove locks/{path.name} from the workspace" if elsewhere else ""
    where = " of another cluster" if elsewhere else ""
    return f"{path.name} is held by {holder.sentence}{where}; this run goes on when that one ends.{cure}"


def _this_cluster() -> str:
    """The digest of the operator's certificate authority; empty when progress is off, and then all are one cluster."""
    path = os.environ.get(SERVER_CA)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path and Path(path).exists() else ""


def _take(path: Path, work: Work, token: str) -> bool:
    holder = {
        "runUid": work.run_uid,
        "kind": work.job_input.kind,
        "name": f"{work.job_input.namespace}/{work.job_input.name}",
        "stage": work.stage,
        "token": token,
        "cluster": _this_cluster(),
    }
    # Written beside and linked, so that nobody reads half a lock.
    written = path.with_name(f".{token}.tmp")
    write_json(written, holder)
    try:
        _place(written, path)
    except FileExistsError:
        return False
    finally:
        written.unlink()
    return True


def _place(written: Path, path: Path) -> None:
    """Give a file its name unless the name is taken; raises FileExistsError then."""
    try:
        os.link(written, path)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        with path.open("xb") as file:
            file.write(written.read_bytes())


def _remove_of(path: Path, token: str) -> None:
    """Remove the lock with this token, and no other that may have come in its place meanwhile."""
    aside = path.with_name(f".{uuid.uuid4().hex}.stale")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if _token_of(aside) != token:
        _place(aside, path)
    aside.unlink()


def _token_of(path: Path) -> str | None:
    value = _read(path)
    return None if value is None else str(value["token"])


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text()))
    except (FileNotFoundError, json.JSONDecodeError):
        # Absent, or being written at this moment.
        return None
