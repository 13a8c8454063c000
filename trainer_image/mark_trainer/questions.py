"""Questions that stand alone, with answers that are spans of a document's text.

They are made by rule, so that the same text gives the same questions.
It must not choose among questions, and not look beyond one document.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from mark_trainer.chunks import Span, sentences
from mark_trainer.documents import Document

FEWEST_ANSWER_WORDS = 3
MOST_ANSWER_WORDS = 40
_MOST_QUESTION_CHARACTERS = 420

_MARKER = re.compile(r"(?:\(?(?:[0-9]{1,3}|[a-zA-Z]|[ivxIVX]{1,5})[.)]|[0-9]+(?:\.[0-9]+)+\.?|[•*–—-])\s+")
_OPEN, _CLOSE = "[“\"‘']", "[”\"’']"
_OWN_NAME = re.compile(
    r"\b([Tt])his ((?:[A-Z][\w-]+ ){0,3}"
    r"(?:licen[cs]e|agreement|document|contract|policy|deed|statement|terms|specification|act|regulation)s?)\b",
    re.IGNORECASE,
)
# Words that point at something outside the sentence.
_DANGLING = re.compile(
    r"\b(?:this|these|those|such|said|here(?:in|of|by|to|under|after)|there(?:in|of|to|under|after)|above|below"
    r"|foregoing|aforementioned|following|preceding|former|latter|otherwise|also|however|accordingly|hence)\b"
    r"|^(?:it|its|they|their|he|she|his|her|and|or|but|in addition|moreover|similarly)\b",
    re.IGNORECASE,
)
_DANGLING_ANSWER = re.compile(r"^(?:as follows|the following|either|both|all of the following)\b", re.IGNORECASE)
_SUBJECT = r"(?:the |a |an |any |each |all |every |no |neither |you\b|your |it |they |this |such |[A-Z]\w+)"
_MODAL = r"(?:may|must|shall|will|should|can|cannot|is|are|does|do|has|have|agrees?|remains?|terminates?|applies|apply)"


@dataclass(frozen=True)
class Question:
    """One question, the span of its answer and the sentence that both come from."""

    text: str
    answer: Span
    sentence: Span
    generator: str
    heading: str


@dataclass(frozen=True)
class _Rule:
    """A shape of sentences, and the question that it answers. `{name}` are the shape's groups and `{title}`."""

    generator: str
    shape: re.Pattern[str]
    question: str
    fewest_words: int = FEWEST_ANSWER_WORDS


def _rule(generator: str, shape: str, question: str, fewest_words: int = FEWEST_ANSWER_WORDS) -> _Rule:
    return _Rule(generator, re.compile(shape), question, fewest_words)


# The first rule that fits a sentence makes its question: the more specific come first.
_RULES = (
    _rule(
        "definition",
        rf"^(?:The (?:term|word|expression)s? )?{_OPEN}(?P<term>[^”\"’]{{2,60}}){_CLOSE}(?: \([^)]*\))?"
        rf"(?: (?:or|and) {_OPEN}[^”\"’]{{2,40}}{_CLOSE})?,?(?: form| software)?,? "
        r"(?:shall |will |also )?(?:means?|refers? to|is defined as|includes?):?,? (?P<answer>.+)$",
        'According to "{title}", what does "{term}" mean?',
    ),
    _rule(
        "definition",
        rf"^{_OPEN}(?P<term>[^”\"’]{{2,60}}){_CLOSE} ?[:–—-] ?(?:[Mm]eans )?(?P<answer>.+)$",
        'According to "{title}", what does "{term}" mean?',
    ),
    _rule(
        "governingLaw",
        r"^.{5,200}?\bgoverned (?:solely |exclusively )?(?:and construed )?by,? "
        r"(?:and construed in accordance with,? )?(?P<answer>the (?:internal )?laws? of [^,;.]+)",
        'By which law is "{title}" governed?',
    ),
    _rule(
        "condition",
        rf"^(?P<word>If|When|Where|Whenever|Unless|Once|As soon as|In the event that|To the extent that)"
        rf" (?P<case>.{{10,200}}?), (?:then )?(?P<answer>{_SUBJECT}(?:[^\s,]+ ){{0,6}}?{_MODAL}\b.+)$",
        'According to "{title}", what applies {word} {case}?',
    ),
    _rule(
        "proviso",
        r"^(?P<rule>.{25,240}?),? (?:(?:but )?(?:only )?provided,?(?: however,?)? that|on (?:the )?condition that"
        r"|(?:as|so) long as|(?:if and )?only if) (?P<answer>.+)$",
        'Under which condition does "{title}" say: "{rule}"?',
    ),
    _rule(
        "exception",
        r"^(?P<rule>.{25,240}?),? "
        r"(?P<answer>(?:unless|except (?:that|as|where|when|to the extent(?: that)?|for|in)) .+)$",
        'Which exception does "{title}" make to the rule "{rule}"?',
    ),
    _rule(
        "period",
        r"^(?P<before>.{15,200}?) (?P<answer>(?:within|for|after|at least|no later than|for a period of|a period of)"
        r" (?:[a-z-]+ )?\(?[0-9a-z-]+\)? (?:calendar |business |working )?(?:days?|months?|years?|weeks?))\b"
        r"(?P<after>.{5,200})$",
        'Which words fill the gap in the sentence "{before} ____ {after}" of "{title}"?',
        fewest_words=2,
    ),
    _rule(
        "purpose",
        r"^(?P<rule>.{25,240}?),? (?P<answer>(?:in order to|so that|for the purposes? of|because) .+)$",
        'For which purpose or reason does "{title}" say: "{rule}"?',
    ),
    _rule(
        "continuation",
        r"^(?P<begin>(?:\S+ ){4,24}?(?:must not|may not|shall not|will not|must|shall|may|will|agrees? to|is|are))"
        r" (?P<answer>.+)$",
        'How does the sentence "{begin} ..." in "{title}" continue?',
        fewest_words=5,
    ),
)


def questions(document: Document) -> list[Question]:
    """All questions of a document, at most one a sentence; a question that would have two answers is left out."""
    found = list(_all_questions(document))
    counts: dict[str, int] = {}
    for question in found:
        key = question.text.casefold()
        counts[key] = counts.get(key, 0) + 1
    return [question for question in found if counts[question.text.casefold()] == 1]


def stands_alone(text: str) -> bool:
    """Whether nothing in the text points at something that a reader of the text alone does not see."""
    return not _DANGLING.search(text)


def _all_questions(document: Document) -> Iterator[Question]:
    heading = ""
    opens_section = False
    for start, end in _unmarked(document.text, sentences(document.text)):
        sentence = document.text[start:end]
        if _is_heading(sentence):
            heading, opens_section = sentence.rstrip(".: ").strip(), True
            continue
        if _is_prose(sentence):
            question = _by_rule(document, (start, end), heading)
            if question is None and opens_section:
                question = _section_question(document, (start, end), heading)
            if question is not None:
                yield question
        opens_section = False


def _by_rule(document: Document, sentence: Span, heading: str) -> Question | None:
    text = document.text[sentence[0] : sentence[1]]
    for rule in _RULES:
        match = rule.shape.search(text)
        if match is None:
            continue
        answer = _trimmed(text, match.span("answer"))
        parts = {name: _named(value) for name, value in match.groupdict().items() if name != "answer"}
        if not _is_answer(text[slice(*answer)], rule.fewest_words) or not all(map(stands_alone, parts.values())):
            continue
        if not _is_clause(parts.get("rule")):
            continue
        if "word" in parts:
            parts["word"] = parts["word"].lower()
        asked = rule.question.format(title=document.title, **parts)
        if len(asked) <= _MOST_QUESTION_CHARACTERS:
            span = (sentence[0] + answer[0], sentence[0] + answer[1])
            return Question(asked, span, sentence, rule.generator, heading)
    return None


def _section_question(document: Document, sentence: Span, heading: str) -> Question | None:
    answer = _trimmed(document.text, sentence)
    if len(heading.split()) < 2 or not stands_alone(heading) or not _is_answer(document.text[slice(*answer)], 6):
        return None
    asked = f'What does the section "{heading}" of "{document.title}" say first?'
    return Question(asked, answer, sentence, "section", heading)


def _unmarked(text: str, spans: list[Span]) -> Iterator[Span]:
    """The sentences without the numbers and letters in front of them."""
    for start, end in spans:
        while marker := _MARKER.match(text, start, end):
            start = marker.end()
        if start < end:
            yield start, end


def _is_heading(sentence: str) -> bool:
    words = sentence.rstrip(".:").split()
    if not 0 < len(words) <= 9 or len(sentence) > 80 or sentence[-1] in ",;" or '"' in sentence:
        return False
    if re.search(r"\(c\)|©|\b[12][0-9]{3}\b", sentence, re.IGNORECASE):
        # A copyright notice or a date.
        return False
    long_words = [word for word in words if len(word) > 3]
    capitals = sum(word[0].isupper() for word in long_words)
    return sentence[0].isupper() and bool(long_words) and capitals >= 0.6 * len(long_words)


def _is_prose(sentence: str) -> bool:
    words = sentence.split()
    letters = [character for character in sentence if character.isalpha()]
    return (
        8 <= len(words) <= 90
        and (sentence[0].isupper() or bool(re.match(_OPEN, sentence)))
        and sum(map(str.isupper, letters)) <= 0.3 * len(letters)
        and len(letters) >= 0.7 * len(sentence)
        and not re.search(r"https?:|www\.|__|[<>\[\]{}|]|\.\.\.", sentence)
    )


def _is_answer(text: str, fewest_words: int) -> bool:
    return (
        fewest_words <= len(text.split()) <= MOST_ANSWER_WORDS
        and not _DANGLING_ANSWER.search(text)
        and not text.endswith((":", " and", " or", " the", " of"))
        and text.count("(") == text.count(")")
        and text.count("“") == text.count("”")
        and text.count('"') % 2 == 0
    )


def _is_clause(text: str | None) -> bool:
    """Whether a quoted rule says something by itself; there may be none."""
    if text is None:
        return True
    return bool(re.search(rf"\b{_MODAL}\b", text)) and not re.search(r"\b(?:but|and|or|if|including|only)$", text)


def _trimmed(text: str, span: Span) -> Span:
    start, end = span
    while end > start and text[end - 1] in " .;,":
        end -= 1
    return start, end


def _named(text: str) -> str:
    """The text with the document's own name for itself made good, since the question names the document."""
    return _OWN_NAME.sub(lambda match: f"{'T' if match[1] == 'T' else 't'}he {match[2]}", text).strip()
