"""Start, stop and describe the local cluster.

Every start is a fresh cluster: nothing that a person would miss is kept in it, and a state that survived a crash
could not be trusted. So `start` first removes whatever an earlier one left, however that ended.
"""

import shutil
import ssl
import urllib.request
from collections.abc import Callable
from functools import partial

from . import (
    access,
    binaries,
    certificates,
    components,
    containers,
    host,
    network,
    objects,
    processes,
    settings,
    volumes,
)
from .commands import wait_until
from .console import say, step
from .errors import ClusterError

KEPT_BY_STOP = {settings.LOGS}
# Written when a start came to its end: components that run may still lack what is created after them.
COMPLETE = settings.STATE / "complete"


def start() -> None:
    """Bring the cluster up, or find it up."""
    host.require_support()
    with host.exclusive("cluster"):
        if healthy():
            say(f"- the local cluster runs already (Kubernetes {settings.KUBERNETES_VERSION})")
            _recycle_volumes()
        else:
            _start_fresh()
        access.hand_out_kubeconfig()
    say(f"- kubeconfig: {settings.KUBECONFIG}")


def _start_fresh() -> None:
    host.install_packages()
    host.refuse_second_kubernetes()
    binaries.build_missing()
    with step("removing what an earlier cluster left"):
        _clear()
    with step("network and certificates"):
        settings.STATE.mkdir(parents=True, exist_ok=True)
        network.set_up()
        certificates.make_all()
        volumes.make_folders()
        containers.make_cgroups()
    with step("containerd"):
        containers.start()
    with step("etcd and the API server"):
        components.start_etcd()
        components.start_api_server()
        wait_until("the API server is ready", _api_server_ready, 120, f"see {processes.log('kube-apiserver')}")
    with step("controllers, scheduler, DNS, kubelet, proxy"):
        for start_component in components.AFTER_API_SERVER:
            start_component()
        objects.apply_all()
        _wait_usable()
    COMPLETE.touch()


def _wait_usable() -> None:
    checks = {
        "the node is Ready": ("kubelet", objects.node_ready),
        "Service addresses lead somewhere": ("kube-proxy", objects.service_reachable),
        "DNS answers": ("coredns", objects.dns_answers),
        "Pod Security is enforced": ("kube-controller-manager", objects.pod_security_enforced),
    }
    for what, (component, holds) in checks.items():
        wait_until(what, partial(_runs_and, component, holds), 120, f"see {processes.log(component)}")
    objects.pretend_gpus()


def _runs_and(component: str, holds: Callable[[], bool]) -> bool:
    processes.require_alive(component)
    return holds()


def _api_server_ready() -> bool:
    for name in ("etcd", "kube-apiserver"):
        processes.require_alive(name)
    return api_server_ready()


def api_server_ready() -> bool:
    """Whether the API server of this state folder says that it is ready."""
    try:
        context = ssl.create_default_context(cafile=certificates.AUTHORITY)
        with urllib.request.urlopen(f"{settings.API_SERVER}/readyz", timeout=5, context=context) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def healthy() -> bool:
    """Whether a start came to its end, all components still run and the cluster can be used."""
    running = processes.recorded()
    if not COMPLETE.exists() or any(name not in running or not running[name].alive() for name in components.ALL_NAMES):
        return False
    return api_server_ready() and objects.node_ready() and objects.service_reachable() and objects.dns_answers()


def stop() -> None:
    """Take the cluster down and leave nothing behind but logs and the cache."""
    host.require_support()
    with host.exclusive("cluster"), step("stopping the local cluster and removing its traces"):
        _clear()
        settings.KUBECONFIG.unlink(missing_ok=True)
        left = traces()
        if left:
            raise ClusterError("some of the cluster is still there:\n" + "\n".join(f"  {trace}" for trace in left))


def _clear() -> None:
    """End every process and remove every trace, whatever state they are in."""
    for name in components.STOP_ORDER:
        # Their state is thrown away, so there is nothing to wait for; an API server would drain for seconds.
        processes.stop(name, patience_seconds=0)
    processes.stop("containerd")
    containers.clear()
    network.tear_down()
    _remove_state()


def traces() -> list[str]:
    """What a cluster has on this machine besides its cache and logs, in words."""
    found = [f"process {name}, {process.pid}" for name, process in processes.recorded().items() if process.alive()]
    found += [f"process of a Pod, {process.pid}" for process in containers.pod_processes()]
    found += [
        f"mount {point}"
        for folder in (settings.STATE, settings.CONTAINERD_ROOT)
        for point in containers.mounts_below(folder)
    ]
    found += [f"cgroup {cgroup}" for cgroup in containers.cgroups()]
    found += network.traces()
    if settings.STATE.exists():
        found += [f"file {child}" for child in settings.STATE.iterdir() if child not in KEPT_BY_STOP]
    return found


def _remove_state() -> None:
    left = containers.mounts_below(settings.STATE)
    if left:
        raise ClusterError(f"still mounted: {', '.join(left)}", "unmount them; deleting now could reach into them")
    for child in settings.STATE.iterdir() if settings.STATE.exists() else ():
        if child in KEPT_BY_STOP:
            continue
        if child.is_dir():
            shutil.rmtree(child)
        else:
            child.unlink()


def recycle_volumes() -> None:
    """Return the volumes of deleted claims to the pool."""
    host.require_support()
    with host.exclusive("cluster"):
        _recycle_volumes()


def _recycle_volumes() -> None:
    returned = volumes.recycle()
    if returned:
        say(f"- volumes wiped and offered again: {', '.join(returned)}")


def describe() -> bool:
    """Print what runs; whether the cluster is usable."""
    host.require_support()
    running = processes.recorded()
    for name in components.ALL_NAMES:
        process = running.get(name)
        state = f"pid {process.pid}, {process.memory_mebibytes()} MiB" if process and process.alive() else "not running"
        print(f"{name:24} {state}")
    if not healthy():
        print("cluster                  not usable")
        return False
    phases = list(volumes.phases().values())
    print(f"volumes                  {phases.count('Available')} of {len(phases)} available")
    for image in sorted(containers.image_names()):
        if not image.startswith("sha256:"):
            print(f"image                    {image}")
    print(access.kubectl_as_admin("get", "nodes", "--output=wide").strip())
    return True
