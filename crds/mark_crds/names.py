"""Every name that two parts must agree on: API group, labels, object names, mount paths, file names. It must hold no behaviour beyond naming."""

GROUP = "training.mark.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

# Labels and annotations on children; never written on a user's object.
RUN_LABEL = f"{GROUP}/run"
RUN_UID_LABEL = f"{GROUP}/run-uid"
KIND_LABEL = f"{GROUP}/kind"
STAGE_LABEL = f"{GROUP}/stage"
ATTEMPT_LABEL = f"{GROUP}/attempt"
CHECKPOINT_STEP_ANNOTATION = f"{GROUP}/last-checkpoint-step"
CHECKPOINT_TIME_ANNOTATION = f"{GROUP}/last-checkpoint-time"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"

# The verb that the optional ValidatingAdmissionPolicy asks for.
CONFIRM_VERB = "confirm"

# The installation-wide stop switch: a ConfigMap in the operator's namespace.
FREEZE_NAME = "mark-freeze"
FROZEN_KEY = "frozen"
FREEZE_REASON_KEY = "reason"

# Inside a Job's Pod.
WORKSPACE_MOUNT = "/workspace"
INPUT_MOUNT = "/etc/mark/input"
PROGRESS_MOUNT = "/etc/mark/progress"
TRAINER_CONTAINER = "trainer"
TERMINATION_MESSAGE_PATH = "/dev/termination-log"
TERMINATION_MESSAGE_LIMIT_BYTES = 4096

# Keys of the plan's ConfigMap.
JOB_INPUT_KEY = "job-input.json"
JOBS_KEY = "jobs.json"
CA_KEY = "ca.crt"

# Folders of a workspace, relative to its root.
RUNS_FOLDER = "runs"
DATASETS_FOLDER = "datasets"
ADAPTERS_FOLDER = "adapters"
REWARD_MODELS_FOLDER = "reward-models"
REPORTS_FOLDER = "reports"
COMPLETED_FOLDER = "completed"
LOCKS_FOLDER = "locks"

# In the manifest, in Python, in an object's name.
STAGE_NAMES = {
    "preflight": ("preflight", "preflight"),
    "ingest": ("ingest", "ingest"),
    "dataPrep": ("data_prep", "data-prep"),
    "lora": ("lora", "lora"),
    "reward": ("reward", "reward"),
    "ppo": ("ppo", "ppo"),
    "eval": ("evaluate", "eval"),
}
STAGE_ORDER = ("ingest", "dataPrep", "lora", "reward", "ppo", "eval")

KIND_LETTERS = {"TrainingRun": "t", "EvalRun": "e"}
PLURALS = {"TrainingRun": "trainingruns", "EvalRun": "evalruns", "Model": "models"}

# `<run>-t-data-prep-99-<index>` must stay a DNS label of 63 characters.
RUN_NAME_LIMIT = 40


def stage_module(stage: str) -> str:
    """The trainer's module for a stage, such as `data_prep`."""
    return STAGE_NAMES[stage][0]


def job_name(kind: str, run: str, stage: str, attempt: int) -> str:
    """The one name that the Job of this attempt can have, such as `contracts-lora-t-data-prep-1`."""
    return f"{run}-{KIND_LETTERS[kind]}-{STAGE_NAMES[stage][1]}-{attempt}"


def plan_name(kind: str, run: str) -> str:
    """The name of the ConfigMap that holds a started run's plan."""
    return f"{run}-{KIND_LETTERS[kind]}-plan"


def metrics_name(kind: str, run: str) -> str:
    """The name of the ConfigMap that holds a run's last metric points."""
    return f"{run}-{KIND_LETTERS[kind]}-metrics"
