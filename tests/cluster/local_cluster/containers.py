"""containerd: its configuration, its images, and the removal of every trace that containers leave."""

import os
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from . import binaries, oci, processes, settings
from .commands import SYSTEM_PATH, run, succeeds, wait_until
from .errors import ClusterError
from .network import CNI_CONFIGURATION

CONFIGURATION_FILE = settings.CONFIGURATION / "containerd.toml"
PAUSE_IMAGE = f"localhost/pause:{settings.PAUSE_VERSION}"
NAMESPACE = "k8s.io"
CGROUP_ROOT = Path("/sys/fs/cgroup")

# restrict_oom_score_adj: without CAP_SYS_RESOURCE (inside most sandboxes) no sandbox would start otherwise.
# netns_mounts_under_state_dir: so that every mount of ours lies below one folder.
CONFIGURATION_TEXT = f"""\
version = 2
root = "{settings.CONTAINERD_ROOT}"
state = "{settings.CONTAINERD_STATE}/run"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp"]

[grpc]
  address = "{settings.CONTAINERD_SOCKET}"

[plugins."io.containerd.internal.v1.opt"]
  path = "{settings.CONTAINERD_STATE}/opt"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true

[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "{CNI_CONFIGURATION}"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
"""


def ctr(*words: str | Path, timeout: float = 600) -> str:
    """Talk to the cluster's containerd."""
    return run("ctr", "--address", settings.CONTAINERD_SOCKET, "--namespace", NAMESPACE, *words, timeout=timeout)


def start() -> None:
    """Start containerd with no container left from an earlier cluster, and the sandbox image in it."""
    settings.CONFIGURATION.mkdir(parents=True, exist_ok=True)
    settings.CONTAINERD_STATE.mkdir(parents=True, exist_ok=True)
    settings.CONTAINERD_ROOT.mkdir(parents=True, exist_ok=True)
    CONFIGURATION_FILE.write_text(CONFIGURATION_TEXT)
    _start_daemon()
    if _forget_containers():
        # The CRI plugin reads containers at its start only: it would report the removed ones.
        processes.stop("containerd")
        _start_daemon()
    if PAUSE_IMAGE not in image_names():
        _import_pause_image()


def _start_daemon() -> None:
    processes.start("containerd", ["containerd", "--config", CONFIGURATION_FILE])

    def answers() -> bool:
        processes.require_alive("containerd")
        return succeeds("ctr", "--address", settings.CONTAINERD_SOCKET, "version", timeout=5)

    wait_until("containerd answers", answers, 60, f"see {processes.log('containerd')}")


def _import_pause_image() -> None:
    def write(stream: IO[bytes]) -> None:
        with tarfile.open(fileobj=stream, mode="w|") as archive:
            oci.write_single_program_image(archive, PAUSE_IMAGE, binaries.program("pause"))

    import_stream(write)


def import_stream(write: Callable[[IO[bytes]], None]) -> None:
    """Bring an image in from an OCI archive that is written while it is read: it never lies on the disk."""
    command = ["ctr", f"--address={settings.CONTAINERD_SOCKET}", f"--namespace={NAMESPACE}", "images", "import", "-"]
    with tempfile.TemporaryFile() as output:
        importer = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, env={"PATH": SYSTEM_PATH}
        )
        assert importer.stdin
        try:
            with importer.stdin:
                write(importer.stdin)
        except BrokenPipeError:
            early_end = "it ended before it had read everything"
        else:
            early_end = ""
        if importer.wait() != 0 or early_end:
            output.seek(0)
            raise ClusterError(
                f"containerd did not take the image: {early_end}\n{output.read().decode(errors='replace')}",
                f"see {processes.log('containerd')}",
            )


def image_names() -> set[str]:
    return set(ctr("images", "ls", "--quiet").split())


def _forget_containers() -> bool:
    """Delete the records of containers, whose processes are gone, with their file systems; whether there were any."""
    left = ctr("containers", "ls", "--quiet").split()
    if left:
        ctr("containers", "delete", *left)
    return bool(left)


def clear() -> None:
    """End what still runs of Pods, and take away mounts, shim sockets and cgroups."""
    sockets = _shim_sockets()
    for process in pod_processes():
        processes.end(process)
    _unmount_below(settings.STATE)
    _unmount_below(settings.CONTAINERD_ROOT)
    for socket in sockets:
        socket.unlink(missing_ok=True)
    _remove_if_empty(Path("/run/containerd/s"))
    _remove_if_empty(Path("/run/containerd"))
    _remove_log_links()
    _remove_cgroups()


def pod_processes() -> list[processes.Process]:
    """Everything that runs for Pods; the shims first, so that they do not report each death."""
    return [*_shims(), *_contained()]


def _shims() -> list[processes.Process]:
    """The processes that stand between containerd and each Pod; they outlive it."""
    mark = f"\0-address\0{settings.CONTAINERD_SOCKET}\0".encode()
    found = []
    for command_line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = command_line.read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        if b"containerd-shim" in words.split(b"\0")[0] and mark in words:
            found.append(processes.identify(int(command_line.parent.name)))
    return [process for process in found if process]


def _shim_sockets() -> list[Path]:
    """Each shim notes its socket, which lies outside our folders, in its container's bundle."""
    addresses = settings.CONTAINERD_STATE.glob("run/io.containerd.runtime.v2.task/*/*/address")
    return [Path(address.read_text().strip().removeprefix("unix://")) for address in addresses]


def _contained() -> list[processes.Process]:
    """Every process in the cgroups that only our kubelet uses."""
    numbers = {
        int(pid)
        for cgroup in cgroups()
        for members in cgroup.rglob("cgroup.procs")
        for pid in members.read_text().split()
    }
    return [process for process in map(processes.identify, sorted(numbers)) if process]


def cgroups() -> list[Path]:
    """Our cgroup in each hierarchy (version 1), or in the only one (version 2)."""
    parents = [CGROUP_ROOT] if unified_cgroups() else [child for child in CGROUP_ROOT.iterdir() if child.is_dir()]
    return [parent / settings.CGROUP for parent in parents if (parent / settings.CGROUP).is_dir()]


def unified_cgroups() -> bool:
    return (CGROUP_ROOT / "cgroup.controllers").exists()


def make_cgroups() -> None:
    """Make the cgroup below which the kubelet puts its Pods."""
    if unified_cgroups():
        controllers = (CGROUP_ROOT / "cgroup.controllers").read_text().split()
        (CGROUP_ROOT / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in controllers))
        (CGROUP_ROOT / settings.CGROUP).mkdir()
        return
    for hierarchy in {child.resolve() for child in CGROUP_ROOT.iterdir() if (child / "cgroup.procs").exists()}:
        group = hierarchy / settings.CGROUP
        group.mkdir()
        for setting in ("cpuset.cpus", "cpuset.mems"):
            if (hierarchy / setting).exists():  # an empty cpuset would take no process
                (group / setting).write_text((hierarchy / setting).read_text())


def _remove_cgroups() -> None:
    for top in cgroups():
        for folder, _, _ in os.walk(top, topdown=False):
            Path(folder).rmdir()


def mounts_below(folder: Path) -> list[str]:
    """Mount points below a folder, the latest first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4].encode().decode("unicode_escape") for line in lines]
    return [point for point in reversed(points) if point.startswith(f"{folder}/")]


def _unmount_below(folder: Path) -> None:
    for point in mounts_below(folder):
        run("umount", "--lazy", "--no-mtab", point)


def _remove_log_links() -> None:
    """The kubelet links every container's log into /var/log/containers."""
    folder = Path("/var/log/containers")
    for link in folder.glob("*.log"):
        if link.is_symlink() and str(link.readlink()).startswith(str(settings.POD_LOGS)):
            link.unlink()
    _remove_if_empty(folder)


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
