"""What people read, compared with files in golden/. `REFRESH_GOLDEN=1 pytest tests/cli` writes them anew."""

import io
import os
from pathlib import Path
from typing import Any

import cli_cases as cases
import pytest
from mark_crds.run import RunStatus
from mark_crds.training_run import TrainingRunSpec
from mark_operator.cli.view import models, plan, report, status
from mark_operator.cli.view.formatting import bar, byte_size, duration, short_image
from rich.console import Console, RenderableType

GOLDEN = Path(__file__).parent / "golden"


def text_of(renderable: RenderableType, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, markup=False, highlight=False, emoji=False)
    console.print(renderable)
    output: Any = console.file
    return "\n".join(line.rstrip() for line in output.getvalue().splitlines()) + "\n"


VIEWS: dict[str, RenderableType] = {
    "plan": plan.plan_view(cases.planned_run(), cases.NOW),
    "plan-refused": plan.plan_view(cases.refused_run(), cases.NOW),
    "plan-confirmed": plan.plan_view(cases.running_run(), cases.NOW),
    "confirming": plan.confirming_view(cases.planned_run()),
    "status-new": status.status_view(cases.new_run(), cases.NOW),
    "status-planned": status.status_view(cases.planned_run(), cases.NOW),
    "status-running": status.status_view(cases.running_run(), cases.NOW),
    "status-succeeded": status.status_view(cases.succeeded_run(), cases.NOW),
    "status-failed": status.status_view(cases.failed_run(), cases.NOW),
    "runs": status.runs_view([cases.running_run(), cases.new_run()], cases.NOW),
    "report": report.report_view(cases.report()),
    "models": models.models_view([cases.model()], {"base/tiny-llama": "Model transformer-lora is preferred"}),
    "model": models.model_view(cases.model()),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_as_it_was_reviewed(name: str) -> None:
    shown, golden = text_of(VIEWS[name]), GOLDEN / f"{name}.txt"
    if os.environ.get("REFRESH_GOLDEN"):
        golden.write_text(shown)
    assert shown == golden.read_text()


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_fits_a_small_terminal(name: str) -> None:
    assert max(map(len, text_of(VIEWS[name], width=60).splitlines())) <= 60


@pytest.mark.parametrize(
    "run",
    [cases.planned_run(), cases.refused_run(), cases.running_run(), cases.succeeded_run(), cases.failed_run()],
    ids=["planned", "refused", "running", "succeeded", "failed"],
)
def test_the_cases_obey_the_contract(run: dict[str, Any]) -> None:
    TrainingRunSpec.model_validate(run["spec"])
    RunStatus.model_validate(run["status"])


def test_changes_are_one_line_each() -> None:
    planned, running = cases.planned_run(), cases.running_run()
    assert status.change_lines({}, planned) == ["state PlanReady"]
    assert status.change_lines(planned, running)[0] == "state Running"
    assert "ingest    Succeeded after 2 min 07 s: documents 91, chunks 1,204" in status.change_lines(planned, running)
    assert status.change_lines(running, running) == []
    failed = status.change_lines(running, cases.failed_run())
    assert failed[-1].endswith("corpus/secret.pdf: is encrypted; remove the password or the file")


@pytest.mark.parametrize(("percent", "lines"), [(43, 0), (49, 0), (50, 1), (100, 1)])
def test_progress_is_a_line_each_tenth(percent: int, lines: int) -> None:
    running = cases.running_run()
    later = cases.with_changes(running, progress={**running["status"]["progress"], "percent": percent})
    assert len(status.change_lines(running, later)) == lines


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(-0.6, -0.4, "is better"), (0.1, 0.3, "is worse"), (-0.1, 0.3, "cannot be told"), (None, None, "cannot be told")],
)
def test_the_verdict_follows_the_interval(low: float | None, high: float | None, words: str) -> None:
    document = cases.report()
    document["answerNats"]["retrieved"]["difference"] |= {"low": low, "high": high}
    assert words in report.verdict(document)


def test_a_model_measured_alone_gets_no_verdict() -> None:
    document = cases.report()
    del document["scores"]["tuned"]
    for nats in document["answerNats"].values():
        del nats["tuned"], nats["difference"]
    assert "measured alone" in text_of(report.report_view(document))


def test_short_forms() -> None:
    assert [duration(s) for s in (0, 59.6, 61, 7260, 200000)] == [
        "0 s",
        "1 min 00 s",
        "1 min 01 s",
        "2 h 01 min",
        "2 days",
    ]
    assert [byte_size(n) for n in (0, 1023, 1024, 5 * 1024**3)] == ["0 B", "1023 B", "1.0 KiB", "5.0 GiB"]
    assert short_image("r.example/a/trainer@sha256:" + "ab" * 32) == "trainer@abababababab"
    assert [len(bar(percent)) for percent in (0, 1, 50, 99, 100)] == [38] * 5
