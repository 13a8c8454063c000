"""Ways to confirm that must start nothing, each with what is answered. It must not look whether anything started."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from mark_crds import names
from rest import Refused
from workloads import Person, Workload

Body = dict[str, Any]
ON: Body = {"dryRun": False, "confirm": True}
# What is answered when it is not a reason of the operator.
REFUSED = "refused by the API server"
PLANNED = "PlanReady"


@dataclass(frozen=True)
class Scene:
    """One run that somebody confirms wrongly, and hashes of other plans that really stand."""

    person: Person
    manifest: Body
    foreign: Body
    """Plan hashes by whose they are: `another run`, `another namespace`, `other kind`."""

    async def plan_hash(self) -> str:
        run = await self.person.planned()
        return str(run["status"]["plan"]["hash"])

    async def confirm(self, **more: Any) -> None:
        await self.person.change(**ON, **more)


@dataclass(frozen=True)
class WrongConfirmation:
    """One way, and what is answered: a reason in the status, or the API server's refusal."""

    name: str
    act: "Act"
    answer: str
    spec: Body = field(default_factory=dict)

    def manifest(self, kind: str, name: str) -> Body:
        body = Workload("run", _nothing, kind=kind, spec=self.spec).manifest
        return {**body, "metadata": {"name": name}}


Act = Callable[[Scene], Awaitable[None]]


async def _nothing(_: Any) -> None:
    """For a story that nobody tells."""


def naming(change: Callable[[str], Any]) -> Act:
    """Confirm with something made from the plan's hash."""

    async def act(scene: Scene) -> None:
        await scene.confirm(confirmPlan=change(await scene.plan_hash()))

    return act


def foreign(whose: str) -> Act:
    async def act(scene: Scene) -> None:
        await scene.plan_hash()
        await scene.confirm(confirmPlan=scene.foreign[whose])

    return act


def patched(**spec: Any) -> Act:
    """One change of a planned run."""

    async def act(scene: Scene) -> None:
        await scene.plan_hash()
        await scene.person.change(**spec)

    return act


def created(**spec: Any) -> Act:
    """A run that is confirmed from its first moment."""

    async def act(scene: Scene) -> None:
        await scene.person.delete()
        await scene.person.create({**scene.manifest, "spec": {**scene.manifest["spec"], **ON, **spec}})

    return act


async def _old_hash(scene: Scene) -> None:
    """Change the work, wait for the new plan, and confirm the one that stood there before."""
    old = await scene.plan_hash()
    await scene.person.change(terminationGracePeriodSeconds=77)
    await scene.person.until(lambda run: run["status"]["plan"]["hash"] != old, "planned anew")
    await scene.confirm(confirmPlan=old)


async def _changed_with_old_hash(scene: Scene) -> None:
    old = await scene.plan_hash()
    await scene.confirm(confirmPlan=old, terminationGracePeriodSeconds=77)


async def _annotated(scene: Scene) -> None:
    await scene.plan_hash()
    marks = {f"{names.GROUP}/confirm": "true", "confirm": "true"}
    await scene.person.rest.patch(scene.person.path, {"metadata": {"annotations": marks, "labels": marks}})


async def _created_again(scene: Scene) -> None:
    """The very run that was planned before, deleted and created again, now confirmed."""
    await scene.plan_hash()
    await created()(scene)


async def _changed_again(scene: Scene) -> None:
    """A confirmation that does not count, followed by other work under it."""
    await scene.plan_hash()
    await scene.confirm(confirmPlan="0" * 64)
    await scene.person.change(terminationGracePeriodSeconds=77)


async def _taken_back(scene: Scene) -> None:
    await scene.plan_hash()
    await scene.confirm(confirmPlan="0" * 64)
    await scene.person.change(confirm=False)


async def _waits(scene: Scene) -> None:
    """Leave the run as it was made, and confirm the right plan, for runs that must not start anyway."""
    run = await scene.person.until(lambda run: bool(run.get("status", {}).get("plan")), "planned")
    await scene.confirm(confirmPlan=run["status"]["plan"]["hash"])


def _other_digit(digit: str) -> str:
    return "0" if digit != "0" else "1"


HASHES = (
    WrongConfirmation("empty", naming(lambda _: ""), REFUSED),
    WrongConfirmation("one digit", naming(lambda right: right[:1]), REFUSED),
    WrongConfirmation("short hash", naming(lambda right: right[:12]), REFUSED),
    WrongConfirmation("all but the last digit", naming(lambda right: right[:-1]), REFUSED),
    WrongConfirmation("one digit too many", naming(lambda right: right + "0"), REFUSED),
    WrongConfirmation("upper case", naming(lambda right: right.upper()), REFUSED),
    WrongConfirmation("blank before", naming(lambda right: " " + right), REFUSED),
    WrongConfirmation("line end after", naming(lambda right: right + "\n"), REFUSED),
    WrongConfirmation("with algorithm", naming(lambda right: f"sha256:{right}"), REFUSED),
    WrongConfirmation("quoted", naming(lambda right: f'"{right}"'), REFUSED),
    WrongConfirmation("true as text", naming(lambda _: "true"), REFUSED),
    WrongConfirmation("true", naming(lambda _: True), REFUSED),
    WrongConfirmation("auto", naming(lambda _: "auto"), REFUSED),
    WrongConfirmation("star", naming(lambda _: "*"), REFUSED),
    WrongConfirmation("number", naming(lambda _: 7), REFUSED),
    WrongConfirmation("list", naming(lambda right: [right]), REFUSED),
    WrongConfirmation("first digit differs", naming(lambda right: _other_digit(right[0]) + right[1:]), "PlanChanged"),
    WrongConfirmation("last digit differs", naming(lambda right: right[:-1] + _other_digit(right[-1])), "PlanChanged"),
    WrongConfirmation("backwards", naming(lambda right: right[::-1]), "PlanChanged"),
    WrongConfirmation("zeros", naming(lambda _: "0" * 64), "PlanChanged"),
    WrongConfirmation("another run's", foreign("another run"), "PlanChanged"),
    WrongConfirmation("another namespace's", foreign("another namespace"), "PlanChanged"),
    WrongConfirmation("the other kind's", foreign("other kind"), "PlanChanged"),
    WrongConfirmation("old hash", _old_hash, "PlanChanged"),
    WrongConfirmation("named while dryRun stays", patched(dryRun=True, confirm=False, confirmPlan="0" * 64), PLANNED),
)
SWITCHES = (
    WrongConfirmation("confirm as text", patched(dryRun=False, confirm="true"), REFUSED),
    WrongConfirmation("confirm as number", patched(dryRun=False, confirm=1), REFUSED),
    WrongConfirmation("dryRun as text", patched(dryRun="false", confirm=True), REFUSED),
    WrongConfirmation("confirm alone", patched(confirm=True), REFUSED),
    WrongConfirmation("dryRun alone", patched(dryRun=False), PLANNED),
    WrongConfirmation("labels and annotations", _annotated, PLANNED),
)
TIMES = (
    WrongConfirmation("created confirmed", created(), "ConfirmedUnseen"),
    WrongConfirmation("created confirmed with zeros", created(confirmPlan="0" * 64), "PlanChanged"),
    WrongConfirmation("planned, deleted and created confirmed", _created_again, "ConfirmedUnseen"),
    WrongConfirmation("changed in the same update", patched(**ON, terminationGracePeriodSeconds=77), REFUSED),
    WrongConfirmation("changed in the same update with the old hash", _changed_with_old_hash, "PlanChanged"),
    WrongConfirmation("changed after a confirmation that did not count", _changed_again, REFUSED),
    WrongConfirmation("taken back", _taken_back, PLANNED),
)
MEANS = (
    WrongConfirmation("no claim", _waits, "PrerequisiteFailed", {"workspace": {"claimName": "nothing"}}),
    WrongConfirmation("image not allowed", _waits, "PrerequisiteFailed", {"image": "elsewhere/trainer:1"}),
    WrongConfirmation("no such GPU", _waits, "PrerequisiteFailed", {"resources": {"gpuResource": "example.com/none"}}),
    WrongConfirmation(
        "more memory than the LimitRange", _waits, "PrerequisiteFailed", {"resources": {"cpu": "1", "memory": "200Gi"}}
    ),
    WrongConfirmation("no such PriorityClass", _waits, "PrerequisiteFailed", {"priorityClassName": "nothing"}),
)
FOR_BOTH = (*HASHES, *SWITCHES, *TIMES, *MEANS)
FOR_TRAINING = (
    WrongConfirmation("no epochs", _waits, REFUSED, {"lora": {"epochs": 0}}),
    WrongConfirmation("reward while rlhf is off", _waits, REFUSED, {"stages": ["dataPrep", "lora", "reward"]}),
    WrongConfirmation(
        "more GPUs in all Pods than the quota",
        _waits,
        "PrerequisiteFailed",
        {"resources": {"nodes": 4, "gpusPerNode": 8, "cpu": "1", "memory": "1Gi"}},
    ),
)


async def attempt(case: WrongConfirmation, scene: Scene) -> str:
    """Create the run and confirm it wrongly; the API server's words when it refused."""
    await scene.person.create(scene.manifest)
    try:
        await case.act(scene)
    except Refused as refusal:
        return str(refusal)
    return ""


async def answer_of(person: Person) -> str:
    """The reason that the status gives once the operator has judged the newest spec."""

    def judged(run: Body) -> bool:
        return bool(run.get("status", {}).get("observedGeneration") == run["metadata"]["generation"])

    return _reason(await person.until(judged, "judged"))


def _reason(run: Body) -> str:
    conditions = run.get("status", {}).get("conditions", [])
    return str(next((item["reason"] for item in conditions if item["type"] == "Progressing"), ""))
