"""The documents keep up with the code: every reason has its section in the runbook, every link and file leads somewhere."""

import re
from pathlib import Path

import click
import pytest
from mark_operator.cli.main import mark
from mark_operator.messages import SENTENCES
from mark_trainer import report

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
    # PassFailed is the reason of an Event alone.
    assert set(sections()) - set(SENTENCES) == {"Other reasons", "PassFailed"}


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
