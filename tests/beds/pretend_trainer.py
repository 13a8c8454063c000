"""Plays the trainers' progress: while a Pod of a run works, what it posts is read by the progress server's own rules and written into the run's status, as the server writes it. It must not touch anything else of a run."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

from mark_crds import names
from mark_operator.progress import MalformedPostError, read_post
from rest import Refused, Rest

Body = dict[str, Any]
MANAGER = "mark-progress"
# Much oftener than real ones, and still seldom enough for a pass between two of them on a busy machine.
TELL_SECONDS = 2.0
STEPS = 1000
# The run, or its whole namespace, is gone by now; or it was written meanwhile more often than the API server tries again.
LOST = (403, 404, 409)


class PretendTrainer:
    """Tells of the Pods of one namespace until its task is cancelled: at once when a Pod starts, then again and again."""

    def __init__(self, rest: Rest, namespace: str, posts: Mapping[str, tuple[Any, ...]]) -> None:
        self._rest, self._namespace, self._posts = rest, namespace, posts
        self._told: Counter[str] = Counter()
        self._at_work: dict[str, Body] = {}
        self._step = 0

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen())
            while True:
                for labels in list(self._at_work.values()):
                    await self._tell(labels)
                await asyncio.sleep(TELL_SECONDS)

    async def _listen(self) -> None:
        while True:
            async with aclosing(self._rest.watch(f"/api/v1/namespaces/{self._namespace}/pods", labelSelector=names.RUN_LABEL)) as events:
                async for kind, pod in events:
                    await self._hear(pod, gone=kind == "DELETED")

    async def _hear(self, pod: Body, gone: bool) -> None:
        uid, labels = pod["metadata"]["uid"], pod["metadata"]["labels"]
        works = not gone and pod["status"].get("phase") == "Running"
        if works and uid not in self._at_work:
            self._at_work[uid] = labels
            await self._tell(labels)
        elif not works:
            self._at_work.pop(uid, None)

    async def _tell(self, labels: Body) -> None:
        kind, name, stage = labels[names.KIND_LABEL], labels[names.RUN_LABEL], labels[names.STAGE_LABEL]
        try:
            told = self._progress(stage)
        except MalformedPostError:
            return  # the server refuses it
        if told is None:
            return
        head = {"apiVersion": names.API_VERSION, "kind": kind, "metadata": {"name": name, "namespace": self._namespace}}
        path = f"/apis/{names.API_VERSION}/namespaces/{self._namespace}/{names.PLURALS[kind]}/{name}/status"
        try:
            await self._rest.apply(path, {**head, "status": {"progress": told}}, MANAGER)
        except Refused as refused:
            if refused.code not in LOST:
                raise

    def _progress(self, stage: str) -> Body | None:
        """What the trainer tells next; None once it is silent."""
        if stage not in self._posts:
            self._step += 1
            return {"stage": stage, "percent": 1, "step": self._step, "steps": STEPS, "updated": _now()}
        at, posts = self._told[stage], self._posts[stage]
        self._told[stage] += 1
        return read_post(posts[at], stage, _now()).to_dict() if at < len(posts) else None


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
