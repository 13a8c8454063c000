"""Examples of token ids without text, for tests of what is done with ids."""

from collections.abc import Sequence

from mark_trainer.dataset import Document, Example, Row
from mark_trainer.likelihood import IGNORED


def example(ids: Sequence[int], prompt_tokens: int) -> Example:
    """These ids, of which all behind the prompt are trained."""
    row = Row(id="row", question="?", answer="!", document=Document(digest="0", cluster="0"), chunk_id="0")
    labels = [IGNORED] * prompt_tokens + list(ids[prompt_tokens:])
    return Example(row=row, ids=list(ids), labels=labels, prompt_tokens=prompt_tokens, form="closedBook")
