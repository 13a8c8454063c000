"""What holds for every test."""

import pytest
from hypothesis import settings

# A busy machine is no fault: how long an example takes says nothing here.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

# They take minutes each. Begun last, they would leave the other worker without work.
LONGEST = (
    "trainer/test_learning.py",
    "trainer/test_ranks.py",
    "contract/test_run_local.py",
    "optin/test_replay.py",
    "runs/test_replicas.py",
    "trainer/test_row_filters.py",
    "runs/test_main_job.py",
    "runs/test_progress_server.py",
    "with_controllers/test_deletion_and_upgrade.py",
    "faults/test_crash_points.py",
    "faults/test_watch_troubles.py",
    "faults/test_misoperation.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, the others as they come."""
    items.sort(key=lambda item: next((at for at, end in enumerate(LONGEST) if item.path.as_posix().endswith(end)), len(LONGEST)))
