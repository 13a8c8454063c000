"""Storage: a pool of local volumes made beforehand, so that a claim binds at once; used ones are wiped and returned."""

import json
import shutil
from pathlib import Path

from . import settings
from .access import kubectl_as_admin

Manifest = dict[str, object]
ACCESS_MODES = ["ReadWriteOnce", "ReadWriteMany"]


def manifests() -> list[Manifest]:
    """The default storage class and its volumes."""
    # Immediate: a claim is bound before any Pod asks for it, so what reads the claim finds it bound.
    storage_class: Manifest = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": settings.STORAGE_CLASS,
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "Immediate",
        "reclaimPolicy": "Retain",
    }
    return [storage_class, *(_volume(number) for number in range(1, settings.VOLUME_COUNT + 1))]


def _volume(number: int) -> Manifest:
    name = f"{settings.STORAGE_CLASS}-{number:02}"
    here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [settings.NODE]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": settings.VOLUME_SIZE},
            "accessModes": ACCESS_MODES,
            "volumeMode": "Filesystem",
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": settings.STORAGE_CLASS,
            # `local`, not `hostPath`: the kubelet gives it to a Pod's fsGroup.
            "local": {"path": str(settings.VOLUMES / name)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
        },
    }


def make_folders() -> None:
    for number in range(1, settings.VOLUME_COUNT + 1):
        (settings.VOLUMES / f"{settings.STORAGE_CLASS}-{number:02}").mkdir(parents=True, mode=0o770)


def phases() -> dict[str, str]:
    """Each volume's phase: Available, Bound or Released."""
    items = json.loads(kubectl_as_admin("get", "persistentvolumes", "--output=json"))["items"]
    return {
        item["metadata"]["name"]: item["status"].get("phase", "Pending")
        for item in items
        if item["spec"].get("storageClassName") == settings.STORAGE_CLASS
    }


def recycle() -> list[str]:
    """Wipe the volumes whose claim is gone and offer them again; their names."""
    released = [name for name, phase in phases().items() if phase == "Released"]
    for name in released:
        _wipe(settings.VOLUMES / name)
        kubectl_as_admin(
            "patch", "persistentvolume", name, "--type=json", '--patch=[{"op": "remove", "path": "/spec/claimRef"}]'
        )
    return released


def _wipe(folder: Path) -> None:
    """Empty the folder in place: a Pod that is just ending may still have it mounted."""
    for child in folder.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()
    shutil.chown(folder, "root", "root")
    folder.chmod(0o770)
