"""Trainers that go wrong in every way of the table in beds/lies.py: each way has one reason, and none is called a success without its artifact and digest."""

import asyncio
import unicodedata
from collections.abc import Iterator
from typing import Any

import pytest
from control_plane import ApiServer
from lies import LIES, Lie, script_of
from operator_bed import CROWDED, Case, crowd
from tally import Tally
from workloads import WORK, Person, Workload

Body = dict[str, Any]
PATIENCE_SECONDS = 240
AT_ONCE = 24  # All together take longer than the patience with each of them, on two cores.
SEEN_TO_STAY_SECONDS = 5
# A silence that the honest trainers, who tell of themselves every two seconds, do not come to on a busy machine.
TIMINGS = {**CROWDED, "noProgressSeconds": 30}
UNCHANGED = {"Running", "Starting", "Suspended"}


async def _nobody(_: Person) -> None:
    """The test itself tells the story."""


def workload_of(lie: Lie) -> Workload:
    spec = {"maxAttempts": 1, **lie.spec}
    posts = {} if lie.posts is None else {lie.stage: lie.posts}
    return Workload(lie.name, _nobody, script_of(lie), spec, lie.kind, posts)


def headline(run: Body) -> str:
    conditions = run.get("status", {}).get("conditions", [])
    return str(next((item["reason"] for item in conditions if item["type"] == "Progressing"), ""))


def reasons_of(runs: list[Body], stage: str) -> set[str]:
    """Every reason that the stage's failure was ever given."""
    stages = [entry for run in runs for entry in run.get("status", {}).get("stages", []) if entry["stage"] == stage]
    return {entry["failure"]["reason"] for entry in stages if "failure" in entry}


def texts(value: Any) -> Iterator[str]:
    """Every text in it, names of fields too, as a terminal would get it."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        yield from texts(list(value.values()))
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)


def steers(text: str) -> bool:
    """Whether a terminal would obey it: a character that is no letter, mark, number, sign or space."""
    return any(unicodedata.category(sign).startswith("C") for sign in text)


async def _live_with(lie: Lie, person: Person) -> list[Body]:
    """Every version of the run, from its confirmation to what the lie makes of it."""
    versions: list[Body] = []

    def reached(run: Body) -> bool:
        versions.append(run)
        return run.get("status", {}).get("state") == lie.state and headline(run) == lie.reason_shown

    person.patience = PATIENCE_SECONDS
    await person.create(workload_of(lie).manifest)
    await person.confirm()
    if lie.act is not None:
        await person.stage_running(WORK[lie.kind])
        await person.change(**lie.act)
    await person.until(reached, f"{lie.state} for {lie.reason_shown}")
    if lie.state in UNCHANGED:
        await asyncio.sleep(SEEN_TO_STAY_SECONDS)
        await person.until(reached, f"{lie.state} for {lie.reason_shown} and stayed so")
    return versions


@pytest.fixture(scope="module")
def lives(plane: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Body] | str]:
    """What became of the run of each lie; a text for one that came to something else."""

    async def live(lie: Lie, person: Person, turns: asyncio.Semaphore) -> list[Body] | str:
        async with turns:
            try:
                return await _live_with(lie, person)
            except AssertionError as error:
                return str(error)

    async def all_lives() -> list[list[Body] | str]:
        turns = asyncio.Semaphore(AT_ONCE)
        log = tmp_path_factory.mktemp("lies") / "operator.log"
        cases = [Case(workload_of(lie)) for lie in LIES]
        async with crowd(plane, cases, log, timings=TIMINGS) as bed:
            told = (live(lie, person, turns) for lie, person in zip(LIES, bed.people, strict=True))
            found = await asyncio.gather(*told)
        assert "Traceback" not in log.read_text()
        return found

    return dict(zip((lie.name for lie in LIES), asyncio.run(all_lives()), strict=True))


def test_there_are_forty_at_least() -> None:
    assert len({lie.name for lie in LIES}) == len(LIES) >= 40


@pytest.mark.parametrize("text", [{"a": ["\x1b[2J"]}, {"\x07": 1}, [["\x9b"]], "\u202e", "\x7f"], ids=ascii)
def test_what_steers_a_terminal_is_found_at_any_depth(text: Any) -> None:
    assert [found for found in texts(text) if steers(found)]


@pytest.mark.slow
@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.name)
def test_each_lie_has_one_reason(lives: dict[str, list[Body] | str], tally: Tally, lie: Lie) -> None:
    versions = lives[lie.name]
    assert not isinstance(versions, str), versions
    status = versions[-1]["status"]
    assert (status["state"], headline(versions[-1])) == (lie.state, lie.reason_shown)
    given = reasons_of(versions, lie.stage)
    assert given == ({lie.reason} if lie.is_failure else set())
    check_success(status, lie)
    assert [text for run in versions for text in texts(run.get("status", {})) if steers(text)] == [], "it steers terminals"
    with tally.of("lying trainer", lie.name) as counts:
        counts["behaviours"] = 1


def check_success(status: Body, lie: Lie) -> None:
    """Only a run whose every stage named its artifact with a digest is ever a success, and by words alone nothing passes."""
    if status["state"] not in ("Succeeded", "Adopted"):
        return
    kinds = {item["kind"] for item in status["result"]["artifacts"] if len(item["digest"]) == 64}
    assert kinds >= ({"dataset", "adapter"} if lie.kind == "TrainingRun" else {"report"})
    assert status["result"].get("passed") is not True
