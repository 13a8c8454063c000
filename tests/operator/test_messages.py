"""What people read: sentences, conditions and settings."""

import json
import re
from pathlib import Path

import pytest
from mark_crds.run import RunStatus
from mark_crds.shared import Condition
from mark_operator.conditions import MEANINGS, conditions_of, merge
from mark_operator.messages import LONGEST_BYTES, SENTENCES, Note, note, shorten
from mark_operator.settings import Settings, load_settings
from run_builders import DIGEST

SOURCES = Path(__file__).resolve().parents[2] / "operator" / "mark_operator"


class Facts(dict[str, str]):
    """Any fact that a sentence asks for."""

    def __missing__(self, key: str) -> str:
        return DIGEST if key in ("hash", "confirmed") else "x" * 253


@pytest.mark.parametrize("reason", SENTENCES)
def test_every_sentence_fits_into_a_condition(reason: str) -> None:
    text = shorten(SENTENCES[reason].format_map(Facts()))
    assert re.fullmatch(r"[A-Z][A-Za-z]{2,63}", reason) and text
    Condition(type="Ready", status="True", reason=reason, message=text, last_transition_time="2026-01-31T12:00:00Z")


def test_every_reason_in_the_sources_has_its_sentence_and_every_sentence_a_use() -> None:
    text = "\n".join(path.read_text() for path in SOURCES.rglob("*.py") if "cli" not in path.parts)
    used = set(re.findall(r'note\(\s*"([A-Za-z]+)"', text)) | set(re.findall(r'_nameless\("([A-Za-z]+)"', text))
    assert used | {"UserMistake", "BadData"} == set(SENTENCES)


def test_long_texts_become_one_short_line() -> None:
    assert shorten("a\n  b") == "a b" and shorten("x" * LONGEST_BYTES) == "x" * LONGEST_BYTES
    for sign in "xä…":
        short = shorten(sign * 5000)
        assert short.endswith("…") and LONGEST_BYTES - 2 <= len(short.encode()) <= LONGEST_BYTES


def test_every_state_has_its_meaning() -> None:
    states = RunStatus.model_fields["state"].annotation
    assert set(MEANINGS) == set(re.findall(r"'(\w+)'", str(states)))


def test_a_condition_keeps_its_time_while_its_status_stays() -> None:
    first = merge((), conditions_of("Running", Note("Running", "a")), now="2026-01-31T12:00:00Z", generation=1)
    second = merge(first, conditions_of("Starting", Note("Waiting", "b")), now="2026-01-31T13:00:00Z", generation=2)
    assert {item.last_transition_time for item in second} == {"2026-01-31T12:00:00Z"}
    assert {item.observed_generation for item in second} == {2} and second[0].message == "b"
    third = merge(second, conditions_of("Failed", Note("Broken", "c")), now="2026-01-31T14:00:00Z", generation=2)
    assert {item.type: item.last_transition_time[11:13] for item in third if item.type in ("Stalled", "Ready")} == {
        "Stalled": "14",
        "Ready": "14",
    }


def test_a_run_in_progress_is_ready_and_a_failed_one_stalled() -> None:
    running = {kind: truth for kind, truth, _ in conditions_of("Running", Note("Running", ""))}
    assert running == {"Progressing": "True", "Succeeded": "Unknown", "Ready": "True", "Stalled": "False"}
    failed = {kind: truth for kind, truth, _ in conditions_of("Failed", Note("Broken", ""))}
    assert failed == {"Progressing": "False", "Succeeded": "False", "Ready": "False", "Stalled": "True"}


def test_missing_facts_are_our_own_mistake() -> None:
    with pytest.raises(KeyError):
        note("PlanReady")


def test_settings_come_from_a_file_and_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("trainerImage: localhost/a:1\napproval: PlanHash\ntimings: {leaseSeconds: 30}\n")
    environment = {"MARK_TRAINER_IMAGE": "localhost/b:2", "MARK_FROZEN": "true", "POD_NAMESPACE": "mark"}
    settings = load_settings(environment, path)
    assert (settings.trainer_image, settings.approval, settings.frozen) == ("localhost/b:2", "PlanHash", True)
    assert settings.operator_namespace == "mark" and settings.timings.lease_seconds == 30
    assert Settings.model_validate(json.loads(json.dumps(settings.to_dict()))) == settings


@pytest.mark.parametrize(
    "text",
    [
        "aproval: Seen",
        "approval: Sometimes",
        "- a list",
        "timings: {leaseSeconds: 3}",  # renewed every 2 s, and given up after 2 s
        "timings: {renewSeconds: 6}",
    ],
)
def test_unknown_settings_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(ValueError):
        load_settings({}, path)
