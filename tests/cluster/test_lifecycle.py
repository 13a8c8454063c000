"""Stop the cluster in every way, and see that nothing is left of it and that it starts again.

These take the machine's only cluster away from whoever uses it: `pytest -m lifecycle tests/cluster`.
"""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_cluster import ClusterError, NotSupportedError, access, containers, lifecycle, network, processes, settings
from local_cluster.commands import run, wait_until

pytestmark = pytest.mark.lifecycle


@pytest.fixture(autouse=True)
def running_cluster() -> Iterator[None]:
    """Each test begins with a cluster and leaves one."""
    try:
        lifecycle.start()
    except NotSupportedError as reason:
        pytest.skip(f"NOT RUN, no local cluster: {reason}")
    yield
    lifecycle.start()


def test_a_stop_leaves_nothing_behind() -> None:
    _run_a_pod()
    with_cluster = _machine()
    lifecycle.stop()
    without = _machine()
    assert all(with_cluster.values()), "the look at the machine must see a running cluster"
    assert not any(without.values()), without
    assert lifecycle.traces() == []


def test_kernel_settings_come_back() -> None:
    lifecycle.stop()
    before = {
        name: Path("/proc/sys", name).read_text()
        for name in network.KERNEL_SETTINGS
        if Path("/proc/sys", name).exists()
    }
    lifecycle.start()
    lifecycle.stop()
    assert {name: Path("/proc/sys", name).read_text() for name in before} == before


def test_images_survive_a_stop() -> None:
    before = containers.image_names()
    lifecycle.stop()
    lifecycle.start()
    assert containers.image_names() == before


def test_it_starts_after_every_process_was_killed() -> None:
    _run_a_pod()
    for process in processes.recorded().values():
        os.kill(process.pid, signal.SIGKILL)
    assert containers.pod_processes(), "a Pod must outlive the components, or this tests nothing"
    lifecycle.start()
    assert _pods() == []


def test_it_starts_after_pods_and_all_were_killed() -> None:
    _run_a_pod()
    for process in [*processes.recorded().values(), *containers.pod_processes()]:
        processes.end(process)
    assert lifecycle.traces(), "an unclean stop must leave something, or this tests nothing"
    lifecycle.start()
    assert _pods() == []


def test_it_starts_after_one_component_was_killed() -> None:
    _run_a_pod()
    os.kill(processes.recorded()["kubelet"].pid, signal.SIGKILL)
    wait_until("the cluster is seen as broken", lambda: not lifecycle.healthy(), 10)
    lifecycle.start()
    assert _pods() == []


def test_it_starts_after_a_reboot_and_ends_nobody_elses_process() -> None:
    """A reboot ends processes and removes mounts, links and chains; files stay, with process numbers of an earlier boot."""
    kept = {path: path.read_bytes() for path in [*settings.RECORDS.iterdir(), network.SAVED_KERNEL_SETTINGS]}
    lifecycle.stop()
    settings.RECORDS.mkdir(parents=True)
    for path, content in kept.items():
        path.write_bytes(content)
    with subprocess.Popen(["sleep", "600"]) as bystander:
        own = processes.identify(bystander.pid)
        assert own is not None
        record = {"pid": own.pid, "start_ticks": own.start_ticks, "boot": "an earlier boot"}
        (settings.RECORDS / "kubelet.json").write_text(json.dumps(record))
        reused = {"pid": own.pid, "start_ticks": own.start_ticks - 1, "boot": own.boot}
        (settings.RECORDS / "kube-proxy.json").write_text(json.dumps(reused))
        lifecycle.start()
        assert bystander.poll() is None
        bystander.kill()
    assert _pods() == []


def _run_a_pod() -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "bystander", "namespace": "default"},
        "spec": {"containers": [{"name": "main", "image": containers.PAUSE_IMAGE, "imagePullPolicy": "Never"}]},
    }

    def created() -> bool:
        try:
            access.kubectl_as_admin("create", "--filename=-", input_text=json.dumps(pod))
        except ClusterError as error:
            if "serviceaccount" in str(error):
                return False  # the namespace is only seconds old
            raise
        return True

    wait_until("a Pod is accepted", created, 30)
    access.kubectl_as_admin("wait", "--for=condition=Ready", "pod/bystander", "--timeout=60s", timeout=90)


def _pods() -> list[str]:
    return access.kubectl_as_admin("get", "pods", "--all-namespaces", "--output=name").split()


def _machine() -> dict[str, list[str]]:
    """Where a cluster shows on the machine, looked at without the code under test."""
    looks = {
        "links": (["ip", "-brief", "link"], settings.BRIDGE),
        "rules": (["iptables-save"], "KUBE-"),
        "mounts": (["cat", "/proc/mounts"], f"{settings.STATE}/"),
        "processes": (["ps", "-e", "-o", "args"], "/var/lib/mark-cluster"),
        "sockets": (["cat", "/proc/net/unix"], "containerd"),
    }
    return {
        what: [line for line in run(*command).splitlines() if word in line] for what, (command, word) in looks.items()
    }
