"""The main job, from nothing: a cluster, the operator, a plan, its confirmation, training on real documents, the report.

    .venv/bin/python tests/cluster/demo.py            on the local cluster, which it starts
    CLUSTER=current .venv/bin/python tests/cluster/demo.py
                                                      on the cluster of your kubectl context; needs MARK_OPERATOR_IMAGE
                                                      and MARK_TRAINER_IMAGE, and a GPU as the sample asks for

It types what a person would type: kubectl, helm, mark and the scripts of this repository. Nothing else.
A second demo starts from nothing again: it deletes the namespace of the first.
"""

import hashlib
import os
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path(sys.executable)
NAMESPACE = "mark-demo"
OPERATOR_NAMESPACE = "mark-system"
CLAIM = "mark-workspace"
RUN = "contracts-lora"
SAMPLE = "manifests/samples/trainingrun-lora.yaml"
CLAIM_SAMPLE = "manifests/samples/workspace-claim.yaml"
# What is shown of a command that helps to see why a step failed.
LINES_OF_HELP, LINE_OF_HELP = 20, 300
DEMO_LABEL = "training.mark.dev/demo"
CORPUS = "build/corpus"
# Where the local cluster keeps its binaries too: what is dear to make survives a fresh checkout.
CACHE = Path(os.environ.get("MARK_CACHE") or Path.home() / ".cache" / "mark-operator")
ON_CURRENT = os.environ.get("CLUSTER") == "current"

began = time.monotonic()
step_times: list[tuple[str, float]] = []


def main() -> int:
    """The story. Each step says which commands it runs; the first that fails ends it, with what helps to see why."""
    say(__doc__.splitlines()[0])
    try:
        start_cluster()
        images = build_images()
        install_operator(images)
        fill_workspace()
        plan()
        latency = confirm()
        follow()
        report()
        show_model()
        goodbye(latency)
    except StepFailedError as failure:
        return explain(failure)
    except KeyboardInterrupt:
        say(f"\ninterrupted; a confirmed run goes on by itself. Stop it:  mark cancel {RUN} -n {NAMESPACE}")
        return 130
    return 0


def start_cluster() -> None:
    title("A cluster" if not ON_CURRENT else "Your cluster")
    run("python3 tests/cluster/local.py up")
    os.environ["KUBECONFIG"] = answer("python3 tests/cluster/local.py kubeconfig")
    os.environ["PATH"] = os.pathsep.join([*tool_folders(), os.environ["PATH"]])
    run("kubectl get nodes")


def tool_folders() -> list[str]:
    """Where mark, kubectl and helm are."""
    binaries = [] if ON_CURRENT else Path(answer("python3 tests/cluster/local.py binaries")).glob("*")
    return [str(PYTHON.parent), *(str(folder) for folder in binaries if folder.name.startswith(("kubernetes", "helm")))]


def build_images() -> dict[str, str]:
    title("Two images: the operator, without PyTorch; the trainer, without Kubernetes")
    if ON_CURRENT:
        given = {name: os.environ.get(f"MARK_{name.upper()}_IMAGE", "") for name in ("operator", "trainer")}
        if not all(given.values()):
            raise StepFailedError("CLUSTER=current needs MARK_OPERATOR_IMAGE and MARK_TRAINER_IMAGE in the environment")
        return given
    printed = run("python3 tests/cluster/local.py images", capture=True)
    found = dict(line.split("=", 1) for line in printed.splitlines() if "=" in line)
    say(printed.strip())
    return {name: next(ref for key, ref in found.items() if name in key) for name in ("operator", "trainer")}


def install_operator(images: dict[str, str]) -> None:
    title("The operator, with the rights it needs and no more")
    # Test suites that used the local cluster before may have left the CRDs there without a release.
    adopt = "" if ON_CURRENT else "--take-ownership --force-conflicts "
    run(
        f"helm upgrade --install mark-operator helm/mark-operator --namespace {OPERATOR_NAMESPACE} --create-namespace "
        f"--set image.operator={images['operator']} --set image.trainer={images['trainer']} {adopt}--wait --timeout 180s",
        helps=(
            f"kubectl -n {OPERATOR_NAMESPACE} get events --field-selector type=Warning",
            f"kubectl -n {OPERATOR_NAMESPACE} logs -l app.kubernetes.io/name=mark-operator --tail 40",
        ),
        quiet=True,
    )
    run(f"kubectl -n {OPERATOR_NAMESPACE} get pods")


def fill_workspace() -> None:
    title("A workspace with documents and a base model")
    forget_earlier_demo()
    run(f"kubectl create namespace {NAMESPACE}")
    run(
        f"kubectl label namespace {NAMESPACE} pod-security.kubernetes.io/enforce=restricted {DEMO_LABEL}=true",
        quiet=True,
    )
    run(f"kubectl -n {NAMESPACE} apply -f {CLAIM_SAMPLE}")
    run(f".venv/bin/python tests/corpus/render.py --out {CORPUS}")
    base = base_model()
    run(f"mark put {CORPUS}/documents corpus --claim {CLAIM} -n {NAMESPACE}")
    run(f"mark put {base} base/tiny-llama --claim {CLAIM} -n {NAMESPACE}")


def forget_earlier_demo() -> None:
    labels = answer(f"kubectl get namespace {NAMESPACE} --ignore-not-found -o jsonpath='{{.metadata.labels}}'")
    if not labels:
        return
    if DEMO_LABEL not in labels:
        raise StepFailedError(f"there is a namespace {NAMESPACE} that no demo made; rename or delete it first")
    say("An earlier demo is there. Its run, model and files are deleted with its namespace.")
    run(f"kubectl delete namespace {NAMESPACE} --timeout=240s")
    run("python3 tests/cluster/local.py volumes")


def base_model() -> Path:
    """A small real Llama, pre-trained for minutes on texts that share no cluster with the documents; built once."""
    sources = [*sorted((ROOT / CORPUS / "pretraining").iterdir()), ROOT / "trainer_image/mark_trainer/base_model.py"]
    inputs = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    out = CACHE / "base" / inputs[:12] / "tiny-llama"
    if out.is_dir():
        say(f"The base model was built before, from the same texts: {out}")
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        run(f"mark-trainer build-base-model --texts {CORPUS}/pretraining --out {out}")
    return out


def plan() -> None:
    title("A TrainingRun, as it stands in the repository: it plans, and starts nothing")
    run(f"kubectl -n {NAMESPACE} apply -f {SAMPLE}")
    run(f"mark plan {RUN} -n {NAMESPACE} --wait 60", helps=RUN_HELPS)
    say("Nothing runs:")
    jobs = run(f"kubectl -n {NAMESPACE} get jobs,pods", capture=True)
    if jobs.strip():
        raise StepFailedError(f"something runs though nobody confirmed it:\n{jobs}", RUN_HELPS)


def confirm() -> float:
    """Seconds from the moment that the API server holds the confirmation to its first Job, both seen by a watch."""
    title("The confirmation of exactly this plan")
    confirmed = Watch(
        f"kubectl -n {NAMESPACE} get trun {RUN} -o jsonpath='{{.spec.confirm}}{{\"\\n\"}}' --watch", "true"
    )
    first_job = Watch(f"kubectl -n {NAMESPACE} get jobs -o name --watch", "job.batch/")
    try:
        run(f"mark confirm {RUN} -n {NAMESPACE}", helps=RUN_HELPS)
        latency = first_job.seen_at(60) - confirmed.seen_at(60)
    finally:
        confirmed.end()
        first_job.end()
    say(f"The first Job was there {latency:.2f} s after the confirmation.")
    return latency


def follow() -> None:
    title("The stages, one after another")
    run(f"mark status {RUN} -n {NAMESPACE} --watch", helps=RUN_HELPS)


def report() -> None:
    title("Is the tuned model better than its base, on documents that neither has seen?")
    run(f"mark report {RUN} -n {NAMESPACE}", helps=RUN_HELPS)


def show_model() -> None:
    title("The registry entry")
    run(f"kubectl -n {NAMESPACE} get models", helps=RUN_HELPS)
    run(f"mark models transformer-lora -n {NAMESPACE}", helps=RUN_HELPS)


def goodbye(latency: float) -> None:
    title("What it took")
    memory = max(operator_memory())
    for name, seconds in step_times[:-1]:
        say(f"  {clock(seconds)}  {name}")
    say(f"  {clock(time.monotonic() - began)}  in all")
    say(f"  confirmation to first Job {latency:.2f} s; operator's memory at most {memory} MiB")
    say(f"""
Still running: {"your cluster" if ON_CURRENT else "the local cluster"}, the operator in {OPERATOR_NAMESPACE}, and the finished run in {NAMESPACE}.
To talk to them from your shell:
  export KUBECONFIG={os.environ["KUBECONFIG"]} PATH={":".join(tool_folders())}:$PATH

Try next:
  mark status {RUN} -n {NAMESPACE}                      the run with its results and where they lie
  mark get {RUN} adapter -n {NAMESPACE}                 the tuned adapter, out of the workspace
  kubectl mark logs {RUN} --stage lora -n {NAMESPACE}   what the training said

Stop it:  {f"helm uninstall mark-operator -n {OPERATOR_NAMESPACE}; kubectl delete namespace {NAMESPACE}" if ON_CURRENT else "make cluster-down"}""")


def operator_memory() -> list[int]:
    """Peak resident memory of each replica, in MiB."""
    pods = answer(f"kubectl -n {OPERATOR_NAMESPACE} get pods -l app.kubernetes.io/name=mark-operator -o name").split()
    peaks = [answer(f"kubectl -n {OPERATOR_NAMESPACE} exec {pod} -- grep VmHWM /proc/1/status") for pod in pods]
    return [int(peak.split()[1]) // 1024 for peak in peaks]


RUN_HELPS = (
    f"mark status {RUN} -n {NAMESPACE}",
    f"kubectl -n {NAMESPACE} get jobs,pods",
    f"kubectl -n {NAMESPACE} get events --sort-by=.lastTimestamp",
    f"kubectl -n {OPERATOR_NAMESPACE} logs -l app.kubernetes.io/name=mark-operator --tail 30",
)


class StepFailedError(Exception):
    """A step did not do what it should; `helps` are commands that show why."""

    def __init__(self, what: str, helps: tuple[str, ...] = ()) -> None:
        super().__init__(what)
        self.helps = helps


class Watch:
    """A kubectl watch in the background; remembers when a line first began as expected."""

    def __init__(self, command: str, expected: str) -> None:
        self._process = subprocess.Popen(shlex.split(command), cwd=ROOT, stdout=subprocess.PIPE, text=True)
        self._expected = expected
        self._seen = threading.Event()
        self._at = 0.0
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(self._expected) and not self._seen.is_set():
                self._at = time.monotonic()
                self._seen.set()

    def seen_at(self, seconds: float) -> float:
        """When it was seen; waits for it."""
        if not self._seen.wait(seconds):
            raise StepFailedError(f"nothing of the kind {self._expected!r} appeared in {seconds:.0f} s", RUN_HELPS)
        return self._at

    def end(self) -> None:
        """Stop watching."""
        self._process.terminate()
        self._process.wait()


def title(text: str) -> None:
    """Begin a step, and note how long the one before took."""
    now = time.monotonic() - began
    if step_times:
        name, started = step_times[-1]
        step_times[-1] = (name, now - started)
    step_times.append((text, now))
    say(f"\n{bold(f'[{clock(now)}] {len(step_times)}. {text}')}")


def run(command: str, *, helps: tuple[str, ...] = (), capture: bool = False, quiet: bool = False) -> str:
    """Run a command as a person would type it; its output goes to the terminal, or comes back."""
    say(bold(f"$ {command}"))
    words = [str(PYTHON) if word in ("python3", ".venv/bin/python") else word for word in shlex.split(command)]
    stdout = subprocess.PIPE if capture or quiet else None
    done = subprocess.run(words, cwd=ROOT, stdout=stdout, text=True, check=False)
    if done.returncode != 0:
        said = f"\n{done.stdout}" if done.stdout else ""
        raise StepFailedError(f"exit code {done.returncode} from: {command}{said}", helps)
    return done.stdout or ""


def answer(command: str) -> str:
    """What a command prints, without showing it."""
    done = subprocess.run(shlex.split(command), cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StepFailedError(f"exit code {done.returncode} from: {command}\n{done.stderr}")
    return done.stdout.strip()


def explain(failure: StepFailedError) -> int:
    """Say which step failed, and show what a person would look at next."""
    say(bold(f"\nThe demo stopped in step {len(step_times)}, {step_times[-1][0]!r}: {failure}"))
    for command in failure.helps:
        say(bold(f"\n$ {command}"))
        done = subprocess.run(shlex.split(command), cwd=ROOT, capture_output=True, text=True, check=False)
        for line in (done.stdout + done.stderr).splitlines()[-LINES_OF_HELP:]:
            say(line[:LINE_OF_HELP])
    say("\nWhat is there stays, so that you can look. Run the demo again when the cause is gone.")
    return 1


def say(text: str) -> None:
    print(text, flush=True)


def bold(text: str) -> str:
    return f"\033[1m{text}\033[0m" if sys.stdout.isatty() else text


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60:2}:{int(seconds) % 60:02}"


if __name__ == "__main__":
    sys.exit(main())
