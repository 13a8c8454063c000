"""The stop switch: on, unless it is known to be off."""

import pytest
from mark_operator.run.freeze import frozen
from mark_operator.seen import Answer, Findings
from run_builders import SETTINGS, Body


def switch(data: Body | None) -> Answer:
    return Answer("Found", ({"metadata": {}, **({"data": data} if data is not None else {})},))


@pytest.mark.parametrize(
    "answer",
    [
        Answer("Unknown", message="403 Forbidden: no"),
        Answer("Refused", message="500"),
        switch(None),
        switch({}),
        switch({"frozen": "true"}),
        switch({"frozen": ""}),
        switch({"frozen": "False"}),
        switch({"frozen": "no"}),
        switch({"Frozen": "false"}),
        switch({"reason": "maintenance"}),
    ],
)
def test_it_is_on(answer: Answer) -> None:
    why = frozen(SETTINGS, Findings(freeze=answer))
    assert why is not None and why.reason == "Frozen" and "mark-system/mark-freeze" in why.message


def test_nobody_looked_means_on() -> None:
    assert frozen(SETTINGS, None) is not None and frozen(SETTINGS, Findings()) is not None


@pytest.mark.parametrize("answer", [Answer("Missing"), switch({"frozen": "false"})])
def test_it_is_off(answer: Answer) -> None:
    assert frozen(SETTINGS, Findings(freeze=answer)) is None


def test_the_setting_needs_no_switch() -> None:
    why = frozen(SETTINGS.model_copy(update={"frozen": True}), Findings(freeze=Answer("Missing")))
    assert why is not None and "setting frozen" in why.message
