"""Whole runs on a real node: from real documents to a model that is measured and judged, with the operator killed on the way, bad input, and a run made again while its Pods still end."""

import json
import secrets
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import demo
import pytest
import yaml
from cluster_run import OPERATOR, RUN_SECONDS, Kubectl, Run, until
from mark_crds import names

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "manifests" / "samples" / "trainingrun-lora.yaml"
FIRST_JOB_SECONDS = 2.0
OPERATOR_MIB = 200

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


@pytest.fixture(scope="session")
def installed(kubectl: Kubectl, operator_image: str, trainer_image: str) -> None:
    """The operator with today's images, installed by the chart as in the demo."""
    demo.start_cluster()
    demo.install_operator({"operator": operator_image, "trainer": trainer_image})


@pytest.fixture(scope="session")
def base_model(installed: None) -> Path:
    demo.run(f".venv/bin/python tests/corpus/render.py --out {demo.CORPUS}")
    return demo.base_model()


@pytest.fixture(scope="module")
def workspace(kubectl: Kubectl, base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A namespace with a claim that holds the corpus, the base model, and folders of bad files."""
    name = f"whole-{secrets.token_hex(3)}"
    kubectl("create", "namespace", name)
    kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    kubectl("apply", "-n", name, "-f", str(ROOT / demo.CLAIM_SAMPLE))
    put(name, ROOT / demo.CORPUS / "documents", "corpus")
    put(name, base_model, "base/tiny-llama")
    put(name, bad_files(tmp_path_factory.mktemp("bad")), "bad")
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


def bad_files(folder: Path) -> Path:
    """Three corpora that cannot be read: no PDF at all, a file that is no PDF, an encrypted one."""
    from pypdf import PdfReader, PdfWriter

    good = sorted((ROOT / "manifests" / "corpus").glob("*.pdf"))[0]
    for name in ("empty", "broken", "locked"):
        (folder / name).mkdir()
    (folder / "empty" / "notes.txt").write_text("no PDF here\n")
    (folder / "broken" / "contract.pdf").write_text("this is a letter, not a PDF\n")
    writer = PdfWriter(clone_from=PdfReader(good))
    writer.encrypt("secret", algorithm="AES-256")
    writer.write(folder / "locked" / "sealed.pdf")
    return folder


def put(namespace: str, folder: Path, path: str) -> None:
    demo.run(f"mark put {folder} {path} --claim {demo.CLAIM} -n {namespace}")


def mark(*words: str) -> str:
    """What `mark` prints; its failure fails the test with its words."""
    done = subprocess.run(["mark", *words], cwd=ROOT, capture_output=True, text=True, timeout=RUN_SECONDS, check=False)
    assert done.returncode == 0, f"mark {' '.join(words)}:\n{done.stdout}{done.stderr}"
    return done.stdout


def sample(name: str, **spec: Any) -> dict[str, Any]:
    """The sample run under another name, with some blocks of its spec laid over."""
    manifest: dict[str, Any] = yaml.safe_load(SAMPLE.read_text())
    manifest["metadata"]["name"] = name
    for field, value in spec.items():
        old = manifest["spec"].get(field)
        manifest["spec"][field] = {**old, **value} if isinstance(old, dict) else value
    return manifest


def apply(kubectl: Kubectl, namespace: str, manifest: dict[str, Any]) -> None:
    kubectl("apply", "-n", namespace, "-f", "-", input_text=json.dumps(manifest))


def message_of(status: dict[str, Any], condition: str) -> str:
    return next(f"{item['reason']}: {item['message']}" for item in status["conditions"] if item["type"] == condition)


@pytest.fixture(scope="module")
def finished(kubectl: Kubectl, workspace: str) -> dict[str, Any]:
    """The sample, planned, confirmed and run to its end, while every replica of the operator is killed in the middle."""
    name = "contracts-lora"
    apply(kubectl, workspace, sample(name))
    run = Run(kubectl, workspace, name)
    run.planned()
    facts: dict[str, Any] = {"jobs before": run.jobs(), "plan": mark("plan", name, "-n", workspace)}

    confirmed = demo.Watch(f"kubectl -n {workspace} get trun {name} -o jsonpath='{{.spec.confirm}}{{\"\\n\"}}' --watch", "true")
    first_job = demo.Watch(f"kubectl -n {workspace} get jobs -o name --watch", "job.batch/")
    mark("confirm", name, "-n", workspace)
    facts["seconds to first Job"] = first_job.seen_at(60) - confirmed.seen_at(60)
    confirmed.end()
    first_job.end()

    run.working_on("ingest")
    kubectl("delete", "pods", "-n", demo.OPERATOR_NAMESPACE, "-l", OPERATOR, "--grace-period=0", "--force")
    run.working_on("lora")
    run.until(lambda status: "loss" in status.get("progress", {}), "live progress with a loss", 300)
    kubectl("delete", "pods", "-n", demo.OPERATOR_NAMESPACE, "-l", OPERATOR, "--grace-period=0", "--force")
    return {**facts, "status": run.ended(), "namespace": workspace, "name": name}


def test_the_run_succeeds_with_one_job_a_stage_though_the_operator_was_killed_twice(kubectl: Kubectl, finished: dict[str, Any]) -> None:
    assert finished["jobs before"] == []
    assert finished["status"]["state"] == "Succeeded", finished["status"]
    expected = [f"contracts-lora-t-{stage}-1" for stage in ("preflight", "ingest", "data-prep", "lora", "eval")]
    assert Run(kubectl, finished["namespace"], finished["name"]).jobs() == sorted(expected)


def test_the_first_job_follows_the_confirmation_at_once(finished: dict[str, Any]) -> None:
    assert finished["seconds to first Job"] < FIRST_JOB_SECONDS


def test_the_operator_stays_small(kubectl: Kubectl, finished: dict[str, Any]) -> None:
    assert max(demo.operator_memory()) < OPERATOR_MIB


def test_the_plan_names_its_stages_and_the_command_that_confirms_it(finished: dict[str, Any]) -> None:
    for word in ("preflight", "ingest", "dataPrep", "lora", "eval", "mark confirm contracts-lora"):
        assert word in finished["plan"]


def test_the_tuned_model_beats_its_base_and_the_base_a_unigram_model(finished: dict[str, Any]) -> None:
    measures = {item["name"]: float(item["value"]) for item in finished["status"]["result"]["measures"]}
    assert measures["nllDifferenceHigh"] < 0
    assert measures["baseNats"] < measures["unigramNats"]


def test_the_registry_has_the_new_version(kubectl: Kubectl, finished: dict[str, Any]) -> None:
    model = json.loads(kubectl("get", "model", "transformer-lora", "-n", finished["namespace"], "-o", "json"))
    adapter = next(item for item in finished["status"]["result"]["artifacts"] if item["kind"] == "adapter")
    assert [version["digest"] for version in model["status"]["versions"]] == [adapter["digest"]]


def test_report_and_adapter_come_out_of_the_workspace(finished: dict[str, Any], tmp_path: Path) -> None:
    name, namespace = finished["name"], finished["namespace"]
    table = mark("report", name, "-n", namespace)
    assert "closed book" in table.lower()
    assert "retrieved" in table.lower()
    mark("get", name, "adapter", "--to", str(tmp_path / "adapter"), "-n", namespace)
    assert list((tmp_path / "adapter").rglob("adapter_model.safetensors"))
    assert "lora" in mark("logs", name, "--stage", "lora", "-n", namespace)


def test_an_eval_run_judges_the_model(kubectl: Kubectl, finished: dict[str, Any]) -> None:
    namespace = finished["namespace"]
    dataset = next(item for item in finished["status"]["result"]["artifacts"] if item["kind"] == "dataset")
    spec = {
        "workspace": {"claimName": demo.CLAIM},
        "model": {"name": "transformer-lora"},
        "dataset": {"path": dataset["path"]},
        "maxItems": 8,
        "maxNewTokens": 16,
        "rag": {"topK": 3},
        "pass": [{"metric": "f1", "condition": "retrieved", "minimum": "0"}],
        "resources": {"gpusPerNode": 1, "cpu": "1500m", "memory": "4Gi"},
        "cpuResources": {"cpu": "1500m", "memory": "3Gi"},
    }
    apply(kubectl, namespace, {"apiVersion": names.API_VERSION, "kind": "EvalRun", "metadata": {"name": "check"}, "spec": spec})
    run = Run(kubectl, namespace, "check", "evalrun")
    run.planned()
    assert run.jobs() == []
    mark("confirm", "erun/check", "-n", namespace)
    status = run.ended()
    assert status["state"] == "Succeeded", status
    assert status["result"]["passed"] is True
    model = json.loads(kubectl("get", "model", "transformer-lora", "-n", namespace, "-o", "json"))
    assert model["status"]["current"] == model["status"]["versions"][-1]["digest"]


def test_the_same_work_again_is_adopted(kubectl: Kubectl, finished: dict[str, Any]) -> None:
    """A confirmed run that is deleted and created again does not train again."""
    name, namespace = finished["name"], finished["namespace"]
    kubectl("delete", "trainingrun", name, "-n", namespace)
    apply(kubectl, namespace, sample(name))
    run = Run(kubectl, namespace, name)
    run.planned()
    mark("confirm", name, "-n", namespace)
    status = run.ended()
    assert status["state"] == "Adopted", status
    assert run.jobs() == [f"{name}-t-preflight-1"]


def test_a_run_created_confirmed_waits_for_its_plan_to_be_read(kubectl: Kubectl, workspace: str) -> None:
    apply(kubectl, workspace, sample("hasty", stages=["ingest"], dryRun=False, confirm=True))
    run = Run(kubectl, workspace, "hasty")
    run.until(lambda status: status.get("state") == "AwaitingConfirmation", "waiting", 60)
    time.sleep(3)
    status = run.status()
    assert "ConfirmedUnseen" in message_of(status, "Confirmed")
    assert f"mark confirm hasty -n {workspace}" in message_of(status, "Confirmed")
    assert run.jobs() == []


BAD_INPUT = {
    "empty-corpus": ({"stages": ["ingest"], "ingest": {"path": "bad/empty"}}, ["bad/empty", "mark put"]),
    "no-pdf": ({"stages": ["ingest"], "ingest": {"path": "bad/broken"}}, ["contract.pdf"]),
    "encrypted": ({"stages": ["ingest"], "ingest": {"path": "bad/locked"}}, ["sealed.pdf"]),
    "no-collection": ({"stages": ["dataPrep"], "dataPrep": {"collection": "nowhere"}}, ["nowhere", "ingest"]),
    "no-base": ({"baseModel": {"path": "base/none"}}, ["base/none"]),
}


@pytest.fixture(scope="module")
def bad_runs(kubectl: Kubectl, workspace: str) -> dict[str, dict[str, Any]]:
    """All runs with bad input, confirmed one after another, beside each other on the node."""
    for name, (spec, _) in BAD_INPUT.items():
        small = {"cpuResources": {"cpu": "250m", "memory": "1Gi"}}
        apply(kubectl, workspace, sample(name, **spec, **small))
        Run(kubectl, workspace, name).planned()
        mark("confirm", name, "-n", workspace)
    return {name: Run(kubectl, workspace, name).ended(300) for name in BAD_INPUT}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_named_with_its_cure_before_a_gpu_is_asked_for(kubectl: Kubectl, workspace: str, bad_runs: dict[str, dict[str, Any]], name: str) -> None:
    status = bad_runs[name]
    assert status["state"] == "Failed", status
    for word in BAD_INPUT[name][1]:
        assert word in message_of(status, "Stalled")
    assert Run(kubectl, workspace, name).jobs() == [f"{name}-t-preflight-1"]


def test_a_missing_claim_is_named_in_the_plan_and_nothing_starts(kubectl: Kubectl, workspace: str) -> None:
    apply(kubectl, workspace, sample("no-claim", workspace={"claimName": "nowhere"}))
    run = Run(kubectl, workspace, "no-claim")
    plan = run.until(lambda status: status.get("plan"), "planned", 60)
    failed = [check for check in plan["checks"] if check["outcome"] == "Failed"]
    assert any("nowhere" in check["message"] for check in failed), plan["checks"]
    refused = subprocess.run(["mark", "confirm", "no-claim", "-n", workspace], capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "nowhere" in refused.stdout + refused.stderr
    assert run.jobs() == []


def test_a_run_made_again_while_its_pods_end_never_has_two_writers(kubectl: Kubectl, workspace: str) -> None:
    """Deletion and creation in quick turns; at no moment do Pods of two runs of that name work."""
    name = "again"
    run = Run(kubectl, workspace, name)
    witness = Witness(kubectl, workspace, name)
    for turn in range(4):
        apply(kubectl, workspace, sample(name, stages=["ingest"], trainingRevision=f"turn-{turn}"))
        run.until(lambda status: status.get("plan", {}).get("seen"), "planned", 60)
        mark("confirm", name, "-n", workspace)
        run.until(lambda status: witness.working() or "finishedAt" in status, "a working Pod", 120)
        if turn < 3:
            kubectl("delete", "trainingrun", name, "-n", workspace, "--wait=false")
            until(lambda: _gone(kubectl, workspace, name), "the run gone", 60)
    status = run.ended()
    witness.end()
    assert status["state"] == "Succeeded", status
    assert witness.together == set()


def _gone(kubectl: Kubectl, namespace: str, name: str) -> bool:
    return not kubectl("get", "trainingrun", name, "-n", namespace, "--ignore-not-found", "-o", "name").strip()


class Witness:
    """Looks at the Pods of one run's name all the time, and remembers each set of uids whose containers worked together."""

    def __init__(self, kubectl: Kubectl, namespace: str, name: str) -> None:
        self._kubectl, self._namespace, self._selector = kubectl, namespace, f"{names.RUN_LABEL}={name}"
        self.together: set[tuple[str, ...]] = set()
        self._now: tuple[str, ...] = ()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def working(self) -> bool:
        return bool(self._now)

    def end(self) -> None:
        self._ending.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ending.is_set():
            pods = json.loads(self._kubectl("get", "pods", "-n", self._namespace, "-l", self._selector, "-o", "json"))["items"]
            self._now = tuple(sorted({pod["metadata"]["labels"][names.RUN_UID_LABEL] for pod in pods if _works(pod)}))
            if len(self._now) > 1:
                self.together.add(self._now)
            time.sleep(0.1)


def _works(pod: dict[str, Any]) -> bool:
    return any("running" in container["state"] for container in pod["status"].get("containerStatuses", []))
