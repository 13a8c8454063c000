"""Everything that a wrong trainer does, and the one reason that a run gives for it. It must not run anything."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from mark_crds.job_output import LOCKED, Adopted, ExitCode, Result
from pretend_kubelet import NEVER, Ending, done, trouble

Body = dict[str, Any]
DIGEST = "ab" * 32
ESCAPES = "\x1b[2J\x07\u202eevil\nline two\x00"


@dataclass(frozen=True)
class Lie:
    """One way to go wrong, in the stage `lora` unless told otherwise."""

    name: str
    ending: Ending
    reason: str
    """The one reason that the stage's failure is given, or, for a run that stays under way, that the run shows."""
    state: str = "Failed"
    """What the run comes to with one attempt a stage, or what it stays at."""
    stage: str = "lora"
    spec: Body = field(default_factory=dict)
    kind: str = "TrainingRun"
    act: Body | None = None
    """A change of the spec while the stage runs."""
    posts: tuple[Any, ...] | None = None
    """What it tells of its progress before it falls silent; absent for the truth, again and again."""

    @property
    def is_failure(self) -> bool:
        """Whether the lie ends the attempt as failed."""
        return self.reason not in ("Succeeded", "Running", "NoProgress", "Waiting", "Suspended", "Cancelled")

    @property
    def reason_shown(self) -> str:
        """What the run itself says in the end: that it succeeded after all, or the reason."""
        return "Succeeded" if self.state == "Succeeded" else self.reason


def says(words: str | Body | list[Any], code: int = 0, **more: Any) -> Ending:
    """A container that ends with these last words."""
    text = words if isinstance(words, str) else json.dumps(words)
    return Ending(exit_code=code, words=text, reason="Completed" if code == 0 else "Error", **more)


def result(**changes: Any) -> Body:
    """An honest last word of the stage lora, with changes; None leaves a field out."""
    value = {
        "stage": "lora",
        "outcome": "Done",
        "reason": "Trained",
        "message": "done",
        "artifacts": [artifact()],
        **changes,
    }
    return {key: item for key, item in value.items() if item is not None}


def artifact(**changes: Any) -> Body:
    value = {"kind": "adapter", "path": "adapters/abc", "digest": DIGEST, **changes}
    return {key: item for key, item in value.items() if item is not None}


def measure(value: str, name: str = "finalLoss") -> Body:
    return {"name": name, "value": value}


def exits(code: int, reason: str = "Error", **more: Any) -> Ending:
    return Ending(exit_code=code, reason=reason, **more)


def post(*metrics: tuple[str, Any], **status: Any) -> Body:
    """A post in the progress protocol."""
    return {"trainerStatus": {"metrics": [{"name": name, "value": value} for name, value in metrics], **status}}


TWICE = json.dumps(result()) * 2
HONEST = json.dumps(result())
HELD = trouble("lora", ExitCode.STOPPED, LOCKED, "work-abc.lock is held by run other/run")
ADOPTED = Result(
    stage="preflight",
    outcome="Adopted",
    reason="AlreadyDone",
    message="done",
    adopted=Adopted(run_uid="earlier", finished="2026-01-01T00:00:00Z"),
)
ADOPTED_WITH_ESCAPES: Body = {**ADOPTED.to_dict(), "adopted": {"runUid": ESCAPES, "finished": "2026-01-01T00:00:00Z"}}

# It ends with 0, and what it says is not what a finished stage says.
FALSE_SUCCESSES = (
    Lie("ends well without a word", exits(0), "NoResult"),
    Lie("ends well with words that are no result", says("training finished, all good"), "NoResult"),
    Lie("ends well with half a result", says(HONEST[:-9]), "NoResult"),
    Lie("ends well with an empty object", says({}), "NoResult"),
    Lie("ends well with a list", says([result()]), "NoResult"),
    Lie("ends well with null", says("null"), "NoResult"),
    Lie("ends well with two results", says(TWICE), "NoResult"),
    Lie("ends well with a bomb of brackets", says("[" * 4000), "NoResult"),
    Lie("ends well with a bomb of objects", says('{"a":' * 600), "NoResult"),
    Lie("ends well with a number beyond all bounds", says('{"formatVersion": 1e999999}'), "NoResult"),
    Lie("ends well with NaN as a token", says('{"formatVersion": NaN}'), "NoResult"),
    Lie("ends well with a message beyond the limit", says(result(message="x" * 1001)), "NoResult"),
    Lie("ends well with a result cut off by the kubelet", says(json.dumps(result(message="x" * 5000))[:4096]), "NoResult"),
    Lie("ends well with another version of the message", says(result(formatVersion=2)), "NoResult"),
    Lie("ends well with an unknown field", says(result(model="gpt")), "NoResult"),
    Lie("ends well and speaks of another stage", says(result(stage="dataPrep")), "NoResult"),
    Lie("ends well and says that it was stopped", says(result(outcome="Stopped")), "NoResult"),
    Lie("ends well and says that the user was wrong", says(result(outcome="UserMistake")), "NoResult"),
    Lie("ends well and says that the work was adopted", says(result(outcome="Adopted")), "NoResult"),
    Lie("ends well with a reason that is no word", says(result(reason="all good!")), "NoResult"),
    Lie("ends well with control characters as its reason", says(result(reason=ESCAPES)), "NoResult"),
    Lie("ends well without an artifact", says(result(artifacts=[])), "NoResult"),
    Lie("ends well with the artifact of another stage", says(result(artifacts=[artifact(kind="dataset")])), "NoResult"),
    Lie("ends well with an artifact without digest", says(result(artifacts=[artifact(digest=None)])), "NoResult"),
    Lie("ends well with a digest that is too short", says(result(artifacts=[artifact(digest="ab")])), "NoResult"),
    Lie("ends well with a digest that is none", says(result(artifacts=[artifact(digest="z" * 64)])), "NoResult"),
    Lie("ends well with an artifact outside the workspace", says(result(artifacts=[artifact(path="../../etc")])), "NoResult"),
    Lie("ends well with an absolute path", says(result(artifacts=[artifact(path="/etc/passwd")])), "NoResult"),
    Lie("ends well with more artifacts than there can be", says(result(artifacts=[artifact()] * 9)), "NoResult"),
    Lie("ends well with more measures than there can be", says(result(measures=[measure("1")] * 90)), "NoResult"),
    Lie("ends well with a measure beyond the limit", says(result(measures=[measure("1" * 25)])), "NoResult"),
    Lie("ends well and its loss is NaN", says(result(measures=[measure("nan")])), "NoResult"),
    Lie("ends well and its loss is infinite", says(result(measures=[measure("-Infinity")])), "NoResult"),
    Lie("ends well and its measure's name clears the screen", says(result(measures=[measure("1", "\x1b[2Jloss")])), "NoResult"),
    Lie("ends well and its measure's value sets the title", says(result(measures=[measure("\x1b]0;evil\x07")])), "NoResult"),
    Lie("ends well and its measure's value begins a line", says(result(measures=[measure("0.5\r\n9")])), "NoResult"),
    Lie("ends well and its measure's name runs backwards", says(result(measures=[measure("1", "\u202essol")])), "NoResult"),
    Lie("ends well and its measure's value steers by one byte", says(result(measures=[measure("\x9b2J")])), "NoResult"),
    Lie("preflight ends well without a word", exits(0), "NoResult", stage="preflight"),
    Lie("preflight adopts nothing", says(result(stage="preflight", outcome="Adopted", artifacts=[])), "NoResult", stage="preflight"),
    Lie("preflight adopts work without its artifact", Ending(result=ADOPTED), "NoResult", stage="preflight"),
    Lie("preflight adopts the work of a run whose uid clears the screen", says(ADOPTED_WITH_ESCAPES), "NoResult", stage="preflight"),
    Lie("the first of two nodes is silent, the second speaks", exits(0, "Completed", others=says(HONEST)), "NoResult", spec={"resources": {"nodes": 2, "cpu": "1", "memory": "1Gi"}}),
)

# It fails, and says otherwise, or nothing, or too much.
FAILURES = (
    Lie("a user's mistake without a word", exits(64), "UserMistake"),
    Lie("bad data without a word", exits(65), "BadData"),
    Lie("a user's mistake that claims success", says(result(), 64), "UserMistake"),
    Lie("a user's mistake that borrows the reason of a success", says(result(outcome="UserMistake", reason="Succeeded"), 64), "UserMistake"),
    Lie("a user's mistake in the operator's words", says(result(outcome="UserMistake", reason="PlanTampered"), 64), "UserMistake"),
    Lie("bad data in the operator's words", says(result(outcome="BadData", reason="JobVanished"), 65), "BadData"),
    Lie("bad data that speaks of another stage", says(result(outcome="BadData", stage="eval"), 65), "BadData"),
    Lie("machine trouble that claims success", says(result(), 70), "ContainerFailed"),
    Lie("machine trouble in the operator's words", says(result(outcome="MachineTrouble", reason="HeldByOtherRun"), 70), "ContainerFailed"),
    Lie("machine trouble without a word", exits(70), "ContainerFailed"),
    Lie("machine trouble with a bomb", says("[" * 4000, 70), "ContainerFailed"),
    Lie("machine trouble with control characters", says(result(outcome="MachineTrouble", reason="Broke", message=ESCAPES), 70), "Broke"),
    Lie("an unknown exit code", exits(42), "ContainerFailed"),
    Lie("Python's exit code for a crash", says("Traceback (most recent call last): ...", 1), "ContainerFailed"),
    Lie("a program that is not there", exits(128, "StartError"), "ContainerFailed"),
    Lie("a segmentation fault", exits(139), "ContainerFailed"),
    Lie("killed, nobody says why", exits(137), "ContainerFailed"),
    Lie("killed for memory", exits(137, "OOMKilled"), "OutOfMemory"),
    Lie("killed for memory after a word of success", replace(says(HONEST, 137), reason="OOMKilled"), "OutOfMemory"),
    Lie("a full disk", says(result(outcome="UserMistake", reason="DiskFull", message="the volume is full"), 64), "DiskFull"),
    Lie("one of two nodes dies, the other claims success", says(HONEST, others=exits(1)), "ContainerFailed", spec={"resources": {"nodes": 2, "cpu": "1", "memory": "1Gi"}}),
    Lie("hangs until the deadline", Ending(after_seconds=NEVER), "DeadlineExceeded", spec={"activeDeadlineSeconds": 60}),
)

# Nobody's fault: not counted, and the next attempt is honest.
INTERRUPTIONS = (
    Lie("evicted", exits(137, disrupted=True), "Disrupted", "Succeeded"),
    Lie("evicted with a word of success", says(HONEST, 137, disrupted=True), "Disrupted", "Succeeded"),
    Lie("its node vanishes and its container is never heard of", exits(137, wordless=True, disrupted=True), "Disrupted", "Succeeded"),
    Lie("stopped without a word", exits(75), "Stopped", "Succeeded"),
    Lie("stopped, but claims success", says(result(), 75), "Stopped", "Succeeded"),
    Lie("held by another run", HELD, "HeldByOtherRun", "Succeeded"),
)

# It never ends by itself; the run stays where it is and says why.
UNDER_WAY_FOR_EVER = (
    Lie("hangs without a word", Ending(after_seconds=NEVER), "Running", "Running"),
    Lie("its image is not there", Ending(waits="ErrImagePull: manifest unknown"), "Waiting", "Starting"),
    Lie("its image is asked for again and again", Ending(waits="ImagePullBackOff: back-off pulling image"), "Waiting", "Starting"),
    Lie("its image has no valid name", Ending(waits="InvalidImageName: couldn't parse"), "Waiting", "Starting"),
    Lie("its volume's Secret is not there", Ending(waits="CreateContainerConfigError: secret not found"), "Waiting", "Starting"),
    Lie("ignores SIGTERM when suspended", Ending(after_seconds=NEVER, deaf=True), "Suspended", "Suspended", act={"suspend": True}, spec={"terminationGracePeriodSeconds": 10}),
    Lie("ignores SIGTERM when cancelled", Ending(after_seconds=NEVER, deaf=True), "Cancelled", "Cancelled", act={"confirm": False}, spec={"terminationGracePeriodSeconds": 10}),
)

# What it tells of its progress is not so: that decides nothing, and silence after it is told of.
SHARE, DONE_IT_SAYS = post(progressPercentage=7), post(("step", "10"), ("steps", "10"), progressPercentage=100)
NO_NUMBERS = post(("loss", "nan"), ("tokensPerSecond", "-inf"), ("epoch", "soon"), estimatedRemainingSeconds=-5, progressPercentage="NaN")
BEYOND = post(("step", "9" * 400), ("steps", "-1"), ("loss", "1e999"), progressPercentage=10**9)
BOMBS = (None, [], post(("\x1b[2Jloss", "1\x07")), {"trainerStatus": {"metrics": "x" * 9000}})
FALSE_PROGRESS = (
    Lie("tells of some progress and then hangs", Ending(after_seconds=NEVER), "NoProgress", "Running", posts=(SHARE,)),
    Lie("claims to be ready and then hangs", Ending(after_seconds=NEVER), "NoProgress", "Running", posts=(DONE_IT_SAYS,)),
    Lie("steps backwards and then hangs", Ending(after_seconds=NEVER), "NoProgress", "Running", posts=(DONE_IT_SAYS, SHARE, post(progressPercentage=0))),
    Lie("tells numbers that are none and then hangs", Ending(after_seconds=NEVER), "NoProgress", "Running", posts=(NO_NUMBERS, BEYOND)),
    Lie("claims to be ready and ends without a word", replace(exits(0), after_seconds=4), "NoResult", posts=(DONE_IT_SAYS,)),
    Lie("claims to be ready and dies", exits(1, after_seconds=4), "ContainerFailed", posts=(DONE_IT_SAYS,)),
    Lie("tells what is no progress and does its work", replace(done("lora"), after_seconds=8), "Succeeded", "Succeeded", posts=(*BOMBS, NO_NUMBERS, BEYOND)),
)

# An evaluation whose numbers are none: it succeeds, for its report stands, but nothing is promoted by it.
CRITERION: Body = {"pass": [{"metric": "f1", "condition": "closedBook", "minimum": "0.1"}]}


def _report(value: str) -> Ending:
    found = {"kind": "report", "path": "reports/eval.json", "digest": DIGEST}
    return says(result(stage="eval", artifacts=[found], measures=[measure(value, "tuned.closedBook.f1")]))


EVALUATIONS = (
    Lie("measures words instead of numbers", _report("banana"), "Succeeded", "Succeeded", stage="eval", spec=CRITERION, kind="EvalRun"),
    Lie("measures more than there is", _report("1e400"), "Succeeded", "Succeeded", stage="eval", spec=CRITERION, kind="EvalRun"),
    Lie("measures NaN", _report("NaN"), "NoResult", stage="eval", spec=CRITERION, kind="EvalRun"),
)

LIES = (*FALSE_SUCCESSES, *FAILURES, *INTERRUPTIONS, *UNDER_WAY_FOR_EVER, *FALSE_PROGRESS, *EVALUATIONS)


def script_of(lie: Lie) -> Callable[[str, int, int], Ending]:
    """The honest trainer, but for this lie."""

    def script(stage: str, attempt: int, turn: int) -> Ending:
        lies = stage == lie.stage and attempt == turn == 1
        return lie.ending if lies else done(stage)

    return script
