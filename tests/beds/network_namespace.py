"""Commands in a network of their own: one without any route, or one whose default route is a wire that leads nowhere and counts.

The wire sees what any process sends, native code too; the list of attempts sees what Python code tries, even if it fails.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

LISTENING = Path(__file__).parent / "listening"
# Without IPv6, so that the kernel itself sends nothing when the wire goes up.
WIRE = """\
sysctl -qw net.ipv6.conf.default.disable_ipv6=1 net.ipv6.conf.all.disable_ipv6=1
ip link set lo up
ip link add wire type veth peer name end
ip link set end up
ip link set wire up
ip address add 192.0.2.1/24 dev wire
ip route add default dev wire
"""
NO_ROUTE = ""  # not even loopback is up
COUNT = "awk '$1 == \"wire:\" {print $11}' /proc/net/dev"
# The libraries' own switches: the trainer must be silent without a person's help.
HELP = (
    "HF_",
    "TRANSFORMERS_",
    "ANONYMIZED_",
    "DO_NOT_TRACK",
    "WANDB_",
    "CHROMA_",
    "PYTHONPATH",
    "KUBEFLOW_",
    "no_proxy",
    "NO_PROXY",
)


@dataclass(frozen=True)
class Heard:
    """How a command ended, and what it said to the network."""

    code: int
    output: str
    packets: int
    attempts: str


def why_not() -> str:
    """Why this machine cannot make such a network; empty when it can."""
    missing = [tool for tool in ("unshare", "ip", "sysctl", "awk") if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)}"
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    done = subprocess.run(["unshare", "--net", "bash", "-ec", WIRE], capture_output=True, text=True, check=False)
    return f"network namespaces do not work here: {done.stderr.strip()}" if done.returncode else ""


needs_namespaces = pytest.mark.skipif(
    bool(why_not()), reason=f"NOT PROVED HERE that nothing reaches the network: {why_not()}"
)


def run_in_network(network: str, command: list[str], folder: Path) -> Heard:
    """Run a command in a new network; `folder` is its working directory and its home."""
    attempts, packets = folder / "attempts.txt", folder / "packets.txt"
    attempts.unlink(missing_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(HELP)}
    environment = {**kept, "HOME": str(folder), "PYTHONPATH": str(LISTENING), "NETWORK_ATTEMPTS": str(attempts)}
    script = f'{network}\n"$@"\ncode=$?\n{COUNT} > {packets}\nexit $code'
    done = subprocess.run(
        ["unshare", "--net", "bash", "-c", script, "bash", *command],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1100, check=False,
    )  # fmt: skip
    return Heard(
        done.returncode, done.stdout, int(packets.read_text() or 0), attempts.read_text() if attempts.exists() else ""
    )


def python(*words: str) -> list[str]:
    return [sys.executable, *words]
