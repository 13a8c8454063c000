"""What manifests/gitops/README.md says about commits and self-heal, done to a real API server by a sync tool and a person."""

from pathlib import Path
from typing import Any

import pytest
import yaml

EXAMPLES = Path(__file__).resolve().parents[2] / "manifests" / "gitops"
RUN = "contracts-lora"
BY_HAND = '{"spec": {"dryRun": false, "confirm": true}}'
CANCEL = '{"spec": {"confirm": false}}'
START = '{"status": {"startedAt": "2026-01-01T00:00:00Z"}}'


class Repository:
    """A sync tool and a person with kubectl, in one namespace."""

    def __init__(self, api_server: Any, namespace: str) -> None:
        self._api_server, self._namespace = api_server, namespace

    def file(self, name: str, **spec: Any) -> dict[str, Any]:
        run = yaml.safe_load((EXAMPLES / name).read_text())
        run["metadata"]["namespace"] = self._namespace
        return {**run, "spec": {**run["spec"], **spec}}

    def sync(self, file: dict[str, Any]) -> Any:
        words = ["apply", "--server-side", "--force-conflicts", "--field-manager=sync-tool", "-f", "-"]
        return self._api_server.kubectl(*words, stdin=file)

    def synced(self, file: dict[str, Any]) -> None:
        done = self.sync(file)
        assert done.returncode == 0, done.stderr

    def patch(self, patch: str, *words: str) -> None:
        self._api_server.must("patch", "trun", RUN, "-n", self._namespace, "--type=merge", "-p", patch, *words)

    def start(self) -> None:
        self.patch(START, "--subresource=status")

    def confirmed(self) -> str:
        return str(self._api_server.must("get", "trun", RUN, "-n", self._namespace, "-o", "jsonpath={.spec.confirm}"))


@pytest.fixture
def repository(api_server, namespace: str) -> Repository:
    return Repository(api_server, namespace)


def test_two_commits(repository: Repository) -> None:
    repository.synced(repository.file("two-commits/1-plan.yaml"))
    assert repository.confirmed() == "false"
    repository.synced(repository.file("two-commits/2-confirm.yaml"))
    assert repository.confirmed() == "true"


def test_the_second_commit_adds_nothing_but_the_confirmation(repository: Repository) -> None:
    first, second = (repository.file(f"two-commits/{name}.yaml")["spec"] for name in ("1-plan", "2-confirm"))
    assert {key: value for key, value in second.items() if key not in ("dryRun", "confirm", "confirmPlan")} == first


def test_one_commit(repository: Repository) -> None:
    repository.synced(repository.file("one-commit/run.yaml"))
    assert repository.confirmed() == "true"


def test_self_heal_leaves_a_confirmation_that_the_file_does_not_mention(repository: Repository) -> None:
    file = repository.file("two-commits/1-plan.yaml")
    repository.synced(file)
    repository.patch(BY_HAND)
    repository.start()
    repository.synced(file)
    assert repository.confirmed() == "true"


@pytest.mark.parametrize("defaults", [{"confirm": False}, {"dryRun": True, "confirm": False}])
def test_self_heal_takes_a_confirmation_back_that_the_file_denies(repository: Repository, defaults: dict[str, bool]) -> None:
    file = repository.file("two-commits/1-plan.yaml", **defaults)
    repository.synced(file)
    repository.patch(BY_HAND)
    repository.start()
    repository.synced(file)
    assert repository.confirmed() == "false"


def test_self_heal_cannot_start_a_cancelled_run_again(repository: Repository) -> None:
    file = repository.file("one-commit/run.yaml")
    repository.synced(file)
    repository.start()
    repository.patch(CANCEL)
    done = repository.sync(file)
    assert done.returncode != 0
    assert "spec: the run has started; confirm can be taken back" in done.stderr
    assert repository.confirmed() == "false"


def test_cancelling_through_git(repository: Repository) -> None:
    file = repository.file("one-commit/run.yaml")
    repository.synced(file)
    repository.start()
    repository.synced({**file, "spec": {**file["spec"], "confirm": False}})
    assert repository.confirmed() == "false"
