"""The Pods' bridge and the kernel settings it needs; afterwards, what was there before."""

import ipaddress
import json
from pathlib import Path

from . import settings
from .commands import run
from .errors import ClusterError

CNI_CONFIGURATION = settings.CONFIGURATION / "cni"
CNI_NETWORK = "mark-cluster"
SAVED_KERNEL_SETTINGS = settings.STATE / "kernel-settings.json"
CHAIN_PREFIX = "KUBE-"
FAMILIES = ("iptables", "ip6tables")
# Written here, by the kubelet and by kube-proxy; put back by `down`.
KERNEL_SETTINGS = (
    "net/ipv4/ip_forward",
    "net/bridge/bridge-nf-call-iptables",
    "net/ipv4/conf/all/route_localnet",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)


def set_up() -> None:
    """Make the bridge and write the CNI configuration."""
    _require_free_subnets()
    _require_bridge_filter()
    _save_kernel_settings()
    _write_kernel_setting("net/ipv4/ip_forward", "1")
    _write_kernel_setting("net/bridge/bridge-nf-call-iptables", "1")
    prefix_length = settings.POD_SUBNET.partition("/")[2]
    run("ip", "link", "add", settings.BRIDGE, "type", "bridge")
    run("ip", "address", "add", f"{settings.GATEWAY}/{prefix_length}", "dev", settings.BRIDGE)
    run("ip", "link", "set", settings.BRIDGE, "up")
    # On a machine without a default route (offline) a Service address would be refused before kube-proxy's rules see it.
    run("ip", "route", "add", settings.SERVICE_SUBNET, "dev", settings.BRIDGE, "src", settings.GATEWAY)
    _write_cni_configuration()


def _require_bridge_filter() -> None:
    """Traffic between Pods must pass iptables, or Services do not work for neighbours on the bridge."""
    if not Path("/proc/sys/net/bridge").exists():
        run("modprobe", "br_netfilter", remedy="the kernel needs the module br_netfilter")


def _require_free_subnets() -> None:
    for route in json.loads(run("ip", "-json", "-4", "route", "show") or "[]"):
        if route["dst"] == "default":
            continue
        taken = ipaddress.ip_network(route["dst"], strict=False)
        for subnet in (settings.POD_SUBNET, settings.SERVICE_SUBNET):
            if taken.overlaps(ipaddress.ip_network(subnet)):
                raise ClusterError(
                    f"the route {route['dst']} on {route.get('dev')} overlaps the cluster's {subnet}",
                    f"free it, or change the subnets in {Path(settings.__file__).name}",
                )


def _write_cni_configuration() -> None:
    CNI_CONFIGURATION.mkdir(parents=True, exist_ok=True)
    bridge = {
        "type": "bridge",
        "bridge": settings.BRIDGE,
        "isGateway": True,
        "ipMasq": False,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": settings.POD_SUBNET}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(settings.STATE / "addresses"),
        },
    }
    content = {"cniVersion": "1.0.0", "name": CNI_NETWORK, "plugins": [bridge]}
    (CNI_CONFIGURATION / "10-bridge.conflist").write_text(json.dumps(content, indent=1))


def tear_down() -> None:
    """Remove the bridge, the Pods' links on it, kube-proxy's chains and the CNI's memory; put kernel settings back."""
    _remove_bridge()
    # Without this file no network of ours was set up since the last time, and such chains are somebody else's.
    if not SAVED_KERNEL_SETTINGS.exists():
        return
    for family in FAMILIES:
        script = _chain_removal(family)
        if script:
            run(f"{family}-restore", "--noflush", input_text=script)
    for result in _results():
        result.unlink()
    _restore_kernel_settings()


def traces() -> list[str]:
    """What is there of our network, in words."""
    found = [f"bridge {settings.BRIDGE}"] if settings.BRIDGE in _links() else []
    found += [f"CNI result {result}" for result in _results()]
    found += [f"{family} chains" for family in FAMILIES if _chain_removal(family)]
    return found


def _links(*selection: str) -> list[str]:
    return [link["ifname"] for link in json.loads(run("ip", "-json", "link", "show", *selection) or "[]")]


def _remove_bridge() -> None:
    if settings.BRIDGE in _links():
        for port in _links("master", settings.BRIDGE):
            run("ip", "link", "delete", port)
        run("ip", "link", "delete", settings.BRIDGE)


def _results() -> list[Path]:
    """The CNI library notes each Pod's result in a folder of its own choice."""
    return list(Path("/var/lib/cni/results").glob(f"{CNI_NETWORK}-*"))


def _chain_removal(family: str) -> str:
    return removal_script(run(f"{family}-save")) if Path("/usr/sbin", f"{family}-save").exists() else ""


def removal_script(saved: str) -> str:
    """The iptables-restore input that takes away every chain of ours from what iptables-save shows."""
    script: list[str] = []
    chains: list[str] = []
    rules: list[str] = []
    for line in saved.splitlines():
        if line.startswith("*"):
            table, chains, rules = line, [], []
        elif line.startswith(f":{CHAIN_PREFIX}"):
            chains.append(line[1:].split()[0])
        elif line.startswith("-A ") and not line.startswith(f"-A {CHAIN_PREFIX}") and f"-j {CHAIN_PREFIX}" in line:
            rules.append(f"-D {line.removeprefix('-A ')}")
        elif line == "COMMIT" and chains:
            script += [table, *rules, *(f"-F {chain}" for chain in chains), *(f"-X {chain}" for chain in chains), line]
    return "\n".join([*script, ""]) if script else ""


def _save_kernel_settings() -> None:
    present = {name: Path("/proc/sys", name) for name in KERNEL_SETTINGS if Path("/proc/sys", name).exists()}
    SAVED_KERNEL_SETTINGS.write_text(json.dumps({name: path.read_text().strip() for name, path in present.items()}))


def _restore_kernel_settings() -> None:
    for name, value in json.loads(SAVED_KERNEL_SETTINGS.read_text()).items():
        if Path("/proc/sys", name).exists():
            _write_kernel_setting(name, value)
    SAVED_KERNEL_SETTINGS.unlink()


def _write_kernel_setting(name: str, value: str) -> None:
    path = Path("/proc/sys", name)
    if path.read_text().strip() != value:
        path.write_text(value)
