"""What the Jobs of a run may use, and the names that follow from the run's own. Pure."""

from dataclasses import dataclass

from mark_crds import names
from mark_crds.run import RunSpec
from mark_crds.shared import CpuResources, Resources

from mark_operator.seen import RunKey
from mark_operator.settings import Settings

CPU_STAGES = frozenset({"preflight", "ingest", "dataPrep"})
ONE_PROCESS_STAGES = frozenset({"reward", "ppo"})
SINGLE_NODE_STAGES = CPU_STAGES | ONE_PROCESS_STAGES | {"eval"}


@dataclass(frozen=True)
class Means:
    """What the Jobs of a run may use; the part of the spec that says where and with what, not which work."""

    key: RunKey
    spec: RunSpec
    resources: Resources
    cpu_resources: CpuResources
    settings: Settings
    api_key_secret: str | None = None
    """Secret with the key of the tracker that training sends its measures to, if it does."""

    def nodes(self, stage: str) -> int:
        return 1 if stage in SINGLE_NODE_STAGES else self.resources.nodes

    def gpus_per_node(self, stage: str) -> int:
        if stage in CPU_STAGES:
            return 0
        return min(1, self.resources.gpus_per_node) if stage in ONE_PROCESS_STAGES else self.resources.gpus_per_node

    @property
    def image(self) -> str:
        return self.spec.image or self.settings.trainer_image


def service_name(key: RunKey) -> str:
    """Name of the headless Service that gives the Pods of a run their DNS names. A Service's must begin with a letter,
    which a run's need not."""
    return f"{names.KIND_LETTERS[key.kind]}-{key.name}"


def progress_audience(key: RunKey) -> str:
    """Audience of the tokens with which the Pods of this run post progress, and of no other run's."""
    return f"{names.GROUP}/{names.PLURALS[key.kind]}/{key.namespace}/{key.name}"


def progress_path(key: RunKey) -> str:
    """Path on the progress server that takes this run's posts."""
    return f"/v1/namespaces/{key.namespace}/{names.PLURALS[key.kind]}/{key.name}/progress"
