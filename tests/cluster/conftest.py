"""Fixtures for tests on the local cluster: the running cluster, our images in it, a namespace for each test.

On a machine that cannot carry the cluster every one of these tests is skipped, with the reason in the summary.
"""

import json
import secrets
from collections.abc import Callable, Iterator

import pytest
from local_cluster import NotSupportedError, access, image_sources, images, lifecycle, uses_current_context

Manifest = dict[str, object]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that take the cluster away from everyone run only when they are asked for by their mark."""
    if "lifecycle" in config.option.markexpr:
        return
    for item in items:
        if item.get_closest_marker("lifecycle"):
            item.add_marker(pytest.mark.skip(reason="takes the cluster away from its users: run with -m lifecycle"))


@pytest.fixture(scope="session")
def kubectl() -> Callable[..., str]:
    """kubectl on the running cluster; it is started if need be."""
    try:
        if not uses_current_context():
            lifecycle.start()
    except NotSupportedError as reason:
        pytest.skip(f"NOT RUN, no local cluster: {reason}")
    return access.kubectl


@pytest.fixture(scope="session")
def operator_image(kubectl: Callable[..., str]) -> str:
    return images.ensure(image_sources.OPERATOR)


@pytest.fixture(scope="session")
def trainer_image(kubectl: Callable[..., str]) -> str:
    return images.ensure(image_sources.TRAINER)


@pytest.fixture
def namespace(kubectl: Callable[..., str]) -> Iterator[str]:
    """A namespace of its own under the `restricted` Pod Security profile, with volumes to be had."""
    if not uses_current_context():
        lifecycle.recycle_volumes()
    name = f"test-{secrets.token_hex(4)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    kubectl("create", "--filename=-", input_text=json.dumps(manifest))
    yield name
    # Not waited for: that takes five seconds and more, and nobody needs the name again.
    kubectl("delete", "namespace", name, "--wait=false")
