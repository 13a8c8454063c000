#!/usr/bin/env python3
"""The trainer's tests inside the trainer's image: its Python, its torch, its code, as user 1000 on a read-only root without a network.

Needs root and buildah, but no cluster. Words are handed on to pytest; without any, the tests that a few minutes allow.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from local_cluster import host, image_sources, images, settings
from local_cluster.build_store import buildah
from local_cluster.console import say
from local_cluster.errors import ClusterError

# What the tests need besides the image; all of it is pure Python.
TEST_PACKAGES = ("pytest", "pluggy", "iniconfig", "pytest-timeout", "pytest-xdist", "execnet", "reportlab")
# These ask the operator's code, a certificate library or the benchmarks, which the image does not have; they run outside.
OUTSIDE = ("test_progress.py", "test_replay.py", "test_gpu_benchmark.py")
BESIDE = "/beside"
# Outside alone: they take minutes, meet under a host name that nobody resolves here, or need a compiler.
LONG = (
    "test_learning.py",
    "test_ranks.py::test_two_processes_learn_what_one_with_twice_the_rows_would",
    "test_ranks.py::test_two_processes_stop_together_and_go_on_bit_for_bit",
    "test_ranks.py::test_deepspeed_learns_what_ddp_does",
    "test_row_filters.py::test_the_same_bytes_whatever_the_hash_seed_and_the_order_of_the_files",
)
CHOSEN = (
    "-q",
    "--numprocesses=2",
    "--dist=loadfile",
    "-p",
    "no:cacheprovider",
    "--durations=10",
    *(f"--deselect=tests/trainer/{test}" for test in LONG),
    "tests/trainer",
)

# In a mount, network and process namespace of its own, gone with it. $1: the image's root; the rest: the command.
# The loopback is up, because tests speak to servers of their own.
INSIDE = """\
root=$1; shift
ip link set lo up
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 dev "$root/dev"
for device in null zero full random urandom; do touch "$root/dev/$device"; mount --bind "/dev/$device" "$root/dev/$device"; done
mkdir "$root/dev/shm" && mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
mount -t tmpfs -o uid=1000,gid=1000 home "$root/home/mark"
mount -o remount,bind,ro "$root"
exec chroot --userspec=1000:1000 "$root" env -i "$@"
"""


def main(words: list[str]) -> int:
    try:
        host.require_support()
        reference = images.ensure_built(image_sources.TRAINER)
        with tempfile.TemporaryDirectory() as folder:
            beside = Path(folder)
            _copy_tests(beside)
            _install_test_packages(beside / "packages")
            say(f"- {reference}: running its tests")
            # With the lock, because whoever builds an image removes all containers of the store.
            with host.exclusive("images", settings.CACHE), _root_of(reference) as root:
                shutil.copytree(beside, f"{root}{BESIDE}")
                subprocess.run(["chmod", "-R", "a+rX", f"{root}{BESIDE}"], check=True)
                return _run(root, words, _environment_of(reference))
    except ClusterError as error:
        say(f"\nERROR: {error}")
        return error.exit_code


def _copy_tests(folder: Path) -> None:
    ignore = shutil.ignore_patterns("__pycache__", *OUTSIDE)
    for part in ("tests/trainer", "tests/beds", "tests/cluster/local_cluster", "manifests/corpus"):
        shutil.copytree(settings.REPOSITORY / part, folder / part, ignore=ignore)
    shutil.copy(settings.REPOSITORY / "pyproject.toml", folder)


def _install_test_packages(folder: Path) -> None:
    """The pinned versions and hashes of the requirement file, for the image's Python."""
    pinned = (settings.REPOSITORY / "tests" / "requirements.txt").read_text()
    wanted = [entry for entry in pinned.replace("\\\n", " ").splitlines() if entry.partition("==")[0] in TEST_PACKAGES]
    if len(wanted) != len(TEST_PACKAGES):
        raise ClusterError(f"tests/requirements.txt does not pin all of {', '.join(TEST_PACKAGES)}", "make lock")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
        requirements.write("\n".join(wanted) + "\n")
        requirements.flush()
        pip = [Path(sys.executable).with_name("uv"), "pip", "install", "-q", "--python", sys.executable]
        subprocess.run([*pip, "--no-deps", "--require-hashes", "--target", folder, "-r", requirements.name], check=True)


@contextmanager
def _root_of(reference: str) -> Iterator[Path]:
    """The root folder of a fresh container of the image."""
    container = buildah("from", "--pull-never", reference).strip()
    try:
        yield Path(buildah("mount", container).strip())
    finally:
        buildah("umount", container)
        buildah("rm", container)


def _run(root: Path, words: list[str], environment: dict[str, str]) -> int:
    """Run pytest in the image with the image's own environment; the exit code is pytest's."""
    told = [f"{name}={value}" for name, value in environment.items()]
    command = ["bash", "-c", f'cd {BESIDE} && exec python -m pytest "$@"', "bash", *(words or CHOSEN)]
    inside = [
        "unshare",
        "--mount",
        "--net",
        "--pid",
        "--fork",
        "bash",
        "-ec",
        INSIDE,
        "bash",
        str(root),
        *told,
        *command,
    ]
    return subprocess.run(inside, stdin=subprocess.DEVNULL, check=False).returncode


def _environment_of(reference: str) -> dict[str, str]:
    """The variables that the image sets, and where the test packages are."""
    described = json.loads(buildah("inspect", "--type=image", reference))
    set_there = dict(word.split("=", 1) for word in described["OCIv1"]["config"]["Env"])
    threads = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY") if name in os.environ}
    return {**set_there, **threads, "PYTHONPATH": f"{BESIDE}/packages"}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
