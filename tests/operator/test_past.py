"""Lists from the past: refused while something newer of their kind is known, until that must be the past itself."""

import pytest
from mark_operator import cluster
from mark_operator.cluster import REFUSED_SECONDS, ApiError, Past


def of(version: str) -> dict[str, dict[str, str]]:
    return {"metadata": {"resourceVersion": version}}


def test_a_list_from_before_what_was_known_is_refused() -> None:
    past = Past()
    past.check("Job", of("10"), past.newest("Job"))
    past.note("Job", of("12"))
    with pytest.raises(ApiError) as refused:
        past.check("Job", of("11"), past.newest("Job"))
    assert refused.value.is_transient and refused.value.from_the_past
    past.check("Job", of("12"), past.newest("Job"))
    past.check("Pod", of("3"), past.newest("Pod"))


def test_what_came_while_a_list_was_under_way_does_not_count_against_it() -> None:
    past = Past()
    known = past.newest("Job")
    past.note("Job", of("12"))
    past.check("Job", of("11"), known)
    assert past.newest("Job") == 12


@pytest.mark.parametrize("version", ["", "0", "abc"])
def test_versions_that_are_no_numbers_are_believed(version: str) -> None:
    past = Past()
    past.note("Job", of("12"))
    past.check("Job", of(version), past.newest("Job"))


def test_a_cluster_restored_from_a_backup_is_believed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    past, moments = Past(), [0.0, REFUSED_SECONDS - 1, REFUSED_SECONDS, REFUSED_SECONDS + 1]
    monkeypatch.setattr(cluster.time, "monotonic", lambda: moments.pop(0))
    past.note("Job", of("900"))
    for _ in range(2):
        with pytest.raises(ApiError):
            past.check("Job", of("5"), past.newest("Job"))
    past.check("Job", of("5"), past.newest("Job"))
    past.check("Job", of("6"), past.newest("Job"))
    assert past.newest("Job") == 6
