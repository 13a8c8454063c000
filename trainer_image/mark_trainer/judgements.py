"""People's judgements of answers: a JSONL file of the workspace, one judgement a line.

A line that cannot be used is an error that names it; none is left out in silence. It must not import torch: preflight
reads the file too.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError, model_validator

from mark_trainer.candidates import draw
from mark_trainer.failures import BadData, UserMistake
from mark_trainer.publish import file_digest
from mark_trainer.workspace import Workspace

HELD_OUT_SHARE = 0.2

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Judgement(BaseModel):
    """One line: the better of two answers to a question, as somebody found. Fields beyond these are left alone."""

    model_config = ConfigDict(frozen=True)

    question: Text
    chosen: Text
    rejected: Text
    passages: tuple[str, ...] | None = None
    """Texts shown with the question; absent asks it closed book."""
    document: str | None = None
    """Digest or name of the document that the question is about."""

    @model_validator(mode="after")
    def _two_answers(self) -> "Judgement":
        if self.chosen == self.rejected:
            raise ValueError("chosen and rejected are the same answer")
        return self

    @property
    def about(self) -> str:
        """What it may share with other judgements, which are then held out or trained on together with it."""
        return self.document or f"question {self.question}"


def read_judgements(workspace: Workspace, path: str) -> list[Judgement]:
    """The judgements of a file; raises what names the field, or the file and the line."""
    file = workspace.path(path)
    if not file.is_file():
        raise UserMistake(
            "NoPreferences",
            f"rlhf.preferences.path: there is no file {path} in the workspace; put it there or correct the path",
        )
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise BadData("BadJudgement", f"{path}: is no UTF-8 ({error}); write the file again") from error
    found = [_read(line, f"{path} line {number}") for number, line in enumerate(lines, start=1) if line.strip()]
    if len({judgement.about for judgement in found}) < 2:
        raise BadData(
            "TooFewJudgements",
            f"{path}: has {len(found)} judgements of {len({judgement.about for judgement in found})} documents, and at "
            "least 2 documents are needed: what the model learned is measured on one that it did not see",
        )
    return found


def held_out(judgements: list[Judgement], seed: int) -> frozenset[str]:
    """What is kept back: a fifth of the documents, one at least, by the seed and their names alone."""
    about = sorted({judgement.about for judgement in judgements}, key=lambda name: draw(seed, "held out", name))
    return frozenset(about[: max(1, round(len(about) * HELD_OUT_SHARE))])


def judgements_digest(workspace: Workspace, path: str) -> str:
    return file_digest(workspace.path(path))


def _read(line: str, name: str) -> Judgement:
    try:
        return Judgement.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise BadData("BadJudgement", f"{name}: {field + ': ' if field else ''}{first['msg']}; correct it") from error
