"""The documents keep up with the code: every reason has its section in the runbook, every link and file leads somewhere."""

import re
from pathlib import Path

import click
import pytest
from lies import LIES
from mark_operator.cli.main import mark
from mark_operator.messages import SENTENCES
from mark_trainer import report
from workloads import WORKLOADS

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("runbook.md", "install.md", "opt-in.md", "metrics.md", "queues.md", "guarantees.md")
DOCUMENTS = [ROOT / "docs" / name for name in NAMES] + [
    ROOT / "manifests" / "gitops" / "README.md"
]


def sections() -> dict[str, str]:
    parts = re.split(r"^### (.+)$", (ROOT / "docs" / "runbook.md").read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("reason", SENTENCES)
def test_reason_has_a_section(reason: str) -> None:
    assert len(sections().get(reason, "").strip()) > 20, f"docs/runbook.md has no section '### {reason}'"


def test_no_section_without_a_reason() -> None:
    assert set(sections()) - set(SENTENCES) == {"Other reasons"}


def test_every_number_of_a_report_is_explained() -> None:
    words = (ROOT / "docs" / "trainer.md").read_text()
    assert [name for name in report.definitions() if f"`{name}`" not in words] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        path, _, anchor = target.partition("#")
        file = document.parent / path if path else document
        assert file.exists(), target
        assert not anchor or anchor in _anchors(file), target


def guarantees() -> list[list[str]]:
    """The rows of the table of guarantees, cell by cell; not its headings, nor those of its themes."""
    lines = (ROOT / "docs" / "guarantees.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return [row for row in rows[1:] if not row[0].startswith("**")]


@pytest.mark.parametrize("row", guarantees(), ids=lambda row: row[0][:40])
def test_a_guarantee_names_its_tests(row: list[str]) -> None:
    assert len(row) == 4
    links = re.findall(r"\[(test_\w+)\]\(([^)]+\.py)\)", row[3])
    assert links and row[3].count("](") == len(links), "each test is a link by its function's name"
    for name, path in links:
        assert re.search(rf"^def {name}\(", (ROOT / "docs" / path).read_text(), re.MULTILINE), f"{path} has no {name}"


def test_guarantees_count_what_there_is() -> None:
    words = (ROOT / "docs" / "guarantees.md").read_text()
    assert f"{len(WORKLOADS)} in all" in words and f"| {len(LIES)} ways: " in words


def _anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", document.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_exist(document: Path) -> None:
    for name, words in re.findall(
        r"\bmark (plan|confirm|settings|cancel|status|put|get|logs|report|models)\b([^`|\n#]*)", document.read_text()
    ):
        known = {option for parameter in _command(name).params for option in parameter.opts}
        for option in re.findall(r"(?<=\s)--?[a-z][a-z-]*", words):
            assert option in known, f"mark {name} has no {option}"


def test_every_command_in_a_document_is_known() -> None:
    texts = " ".join(document.read_text() for document in DOCUMENTS)
    for name in re.findall(r"`mark ([a-z]+)", texts):
        _command(name)


def _command(name: str) -> click.Command:
    assert name in mark.commands, f"there is no command mark {name}"
    return mark.commands[name]
