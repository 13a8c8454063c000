"""A pretend kubelet that takes its time when Pods are deleted, leaves alone what a scheduler would not place, and watches over the one rule of a workspace:
two attempts or namesakes of a run never write at once."""

import asyncio
from collections.abc import Callable
from typing import Any

from mark_crds import names
from pretend_kubelet import Ending, PretendKubelet, Script
from rest import Rest

Body = dict[str, Any]

# The ending of one rank: stage, attempt, rank.
Ranks = Callable[[str, int, int], Ending | None]


def careful(kept: list["CarefulKubelet"], **habits: Any) -> Callable[[Rest, str, Script], PretendKubelet]:
    """A maker of kubelets with these habits; those it made are kept, to be asked afterwards."""

    def make(rest: Rest, namespace: str, script: Script) -> PretendKubelet:
        kept.append(CarefulKubelet(rest, namespace, script, **habits))
        return kept[-1]

    return make


class CarefulKubelet(PretendKubelet):
    """Notes every Pod that starts beside a Pod of another attempt, or of another run of the same name."""

    def __init__(
        self,
        rest: Rest,
        namespace: str,
        script: Script,
        *,
        end_seconds: float = 0.4,
        ranks: Ranks = lambda *_: None,
        unplaced: Callable[[Body], bool] = lambda _: False,
    ) -> None:
        super().__init__(rest, namespace, script)
        self.together: list[tuple[str, str]] = []
        self.started: list[str] = []
        self._end_seconds, self._ranks, self._unplaced = end_seconds, ranks, unplaced
        self._ending_since: dict[str, float] = {}
        self._at_work: dict[str, dict[str, str]] = {}

    async def _look_at(self, pod: Body) -> None:
        metadata, spec = pod["metadata"], pod["spec"]
        if "deletionTimestamp" in metadata and pod["status"].get("phase") in ("Pending", "Running"):
            now = asyncio.get_running_loop().time()
            if now >= self._ending_since.setdefault(metadata["uid"], now) + self._end_seconds:
                # Without a last status: else it is chance whether the Job controller reads its exit code before it is gone.
                await self._rest.delete(f"{self._pods}/{metadata['name']}", {"gracePeriodSeconds": 0})
                self._at_work.pop(metadata["name"], None)
            return
        if not spec.get("nodeName") and (spec.get("schedulingGates") or self._unplaced(pod)):
            return
        if pod["status"].get("phase") == "Pending" and spec.get("nodeName") and "deletionTimestamp" not in metadata:
            self._note(pod)
        await super()._look_at(pod)

    async def _end(self, name: str, ending: Ending) -> None:
        await super()._end(name, ending)
        self._at_work.pop(name, None)

    def _note(self, pod: Body) -> None:
        """A Pod is about to start: whoever still works must be a rank of the same Job."""
        name, labels = pod["metadata"]["name"], pod["metadata"]["labels"]
        for other, theirs in self._at_work.items():
            same_run = theirs[names.RUN_LABEL] == labels[names.RUN_LABEL]
            if same_run and theirs["batch.kubernetes.io/controller-uid"] != labels["batch.kubernetes.io/controller-uid"]:
                self.together.append((other, name))
        self._at_work[name] = labels
        self.started.append(name)

    def _ending(self, pod: Body) -> Ending:
        labels = pod["metadata"]["labels"]
        rank = int(labels["batch.kubernetes.io/job-completion-index"])
        ending = self._ranks(labels[names.STAGE_LABEL], int(labels[names.ATTEMPT_LABEL]), rank)
        return ending if ending is not None else super()._ending(pod)
