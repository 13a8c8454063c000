"""What the operator writes, the trainer reads; what the trainer leaves, the operator reads. Each with the code of both sides."""

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml
from mark_crds import names
from mark_crds.eval_run import EvalRunSpec
from mark_crds.job_output import ExitCode
from mark_crds.training_run import TrainingRunSpec
from mark_operator import planning
from mark_operator.job_facts import Done, Ended, read_job
from mark_operator.progress import read_checkpoint, read_post, read_told
from mark_operator.run.objects import bind
from mark_operator.run.plan import Rendering
from mark_operator.seen import RunKey
from mark_trainer import progress
from mark_trainer.__main__ import _parser, read_job_input
from run_builders import SETTINGS, UID, job_with, pod_with, terminated

SAMPLES = Path(__file__).parents[2] / "manifests" / "samples"


def samples() -> Iterator[Any]:
    for path in sorted(SAMPLES.glob("*.yaml")):
        for manifest in yaml.safe_load_all(path.read_text()):
            if manifest["kind"] in names.KIND_LETTERS and "path" in manifest["spec"].get("model", {"path": ""}):
                yield pytest.param(manifest, id=path.stem)


def rendering(manifest: dict[str, Any]) -> Rendering:
    kind = manifest["kind"]
    spec = {"TrainingRun": TrainingRunSpec, "EvalRun": EvalRunSpec}[kind].model_validate(manifest["spec"]).to_dict()
    found = planning.plan(RunKey(kind, "legal", manifest["metadata"]["name"]), spec, SETTINGS, ())
    assert isinstance(found, Rendering), found
    return found


@pytest.mark.parametrize("manifest", list(samples()))
def test_the_trainer_reads_the_plan_of_every_sample(manifest: dict[str, Any], tmp_path: Path) -> None:
    plan = rendering(manifest)
    path = tmp_path / names.JOB_INPUT_KEY
    path.write_text(plan.data[names.JOB_INPUT_KEY])
    assert read_job_input(path) == plan.job_input


@pytest.mark.parametrize("manifest", list(samples()))
def test_the_trainer_understands_the_arguments_of_every_job(manifest: dict[str, Any]) -> None:
    plan = rendering(manifest)
    for template in plan.jobs:
        job = bind(template, kind=manifest["kind"], uid=UID, attempt=2)
        container = job["spec"]["template"]["spec"]["containers"][0]
        options = _parser().parse_args(container["args"])
        assert options.stage == job["metadata"]["labels"][names.STAGE_LABEL]
        assert (options.run_uid, options.attempt) == (UID, 2)
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert {str(options.workspace), str(options.input.parent)} <= mounts


def test_the_trainer_finds_the_progress_server_where_the_operator_says(tmp_path: Path) -> None:
    plan = rendering(yaml.safe_load((SAMPLES / "trainingrun-lora.yaml").read_text()))
    variables = {item["name"]: item["value"] for item in plan.jobs[-1]["spec"]["template"]["spec"]["containers"][0]["env"] if "value" in item}
    server = progress.Server.from_environment(variables)
    assert server is not None
    assert server.url.startswith(str(SETTINGS.progress_url))
    assert server.ca_path == f"{names.PROGRESS_MOUNT}/{names.CA_KEY}"


def test_the_operator_reads_what_the_trainer_posts() -> None:
    posts: list[bytes] = []

    class Taker(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posts.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Keep the test's output clean."""

    with HTTPServer(("127.0.0.1", 0), Taker) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        reporter = progress.Progress("lora", progress.Server(f"http://127.0.0.1:{server.server_port}", None, None))
        reporter.kept(28)
        reporter.report(30, 40, loss=1.5, epoch=2.25, learningRate=2e-4, gradNorm=0.75, tokensPerSecond=1234.0)
        reporter.close()
        server.shutdown()
    told = read_post(json.loads(posts[-1]), "lora", "2026-01-31T12:00:00Z")
    assert (told.percent, told.step, told.steps, told.loss, told.epoch, told.tokens_per_second) == (75, 30, 40, "1.5", "2.25", "1234")
    noon = datetime(2026, 1, 31, 12, tzinfo=UTC)
    curves = {item.name: item.value for item in read_told(json.loads(posts[-1]), "lora", noon)}
    assert curves == {"loss": "1.5", "learningRate": "0.0002", "gradNorm": "0.75", "tokensPerSecond": "1234"}
    kept = read_checkpoint(json.loads(posts[-1]), "lora", noon)
    assert kept is not None and kept.step == 28 and timedelta() <= noon - datetime.fromisoformat(kept.time) < timedelta(minutes=1)


def ended(tmp_path: Path, arguments: list[str]) -> tuple[int, str]:
    """Exit code and termination message of a real trainer process."""
    message = tmp_path / "termination-message"
    command = [sys.executable, "-m", "mark_trainer", *arguments, "--termination-message", str(message)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, message.read_text()


def test_a_failure_of_the_trainer_becomes_the_operators_reason_and_words(tmp_path: Path) -> None:
    plan = rendering(yaml.safe_load((SAMPLES / "trainingrun-lora.yaml").read_text()))
    (tmp_path / "workspace").mkdir()
    (tmp_path / names.JOB_INPUT_KEY).write_text(plan.data[names.JOB_INPUT_KEY])
    code, message = ended(
        tmp_path,
        ["run", "--stage", "preflight", "--input", str(tmp_path / names.JOB_INPUT_KEY), "--workspace", str(tmp_path / "workspace"), "--run-uid", UID],
    )
    assert code in (ExitCode.USER_MISTAKE, ExitCode.BAD_DATA)
    job = job_with(bind(plan.jobs[0], kind="TrainingRun", uid=UID, attempt=1), "Failed", reason="PodFailurePolicy")
    fact = read_job(job, (pod_with(job, terminated(code, message), phase="Failed"),))
    assert isinstance(fact, Ended)
    assert fact.final
    assert "base/tiny-llama" in fact.why.message
    assert fact.why.reason == json.loads(message)["reason"]


def test_a_success_of_the_trainer_is_done_for_the_operator(tmp_path: Path) -> None:
    manifest = yaml.safe_load((SAMPLES / "trainingrun-lora.yaml").read_text())
    manifest["spec"] = {"workspace": manifest["spec"]["workspace"], "stages": ["ingest"], "ingest": {"path": "corpus"}}
    plan = rendering(manifest)
    workspace = tmp_path / "workspace"
    (workspace / "corpus").mkdir(parents=True)
    document = sorted((SAMPLES.parent / "corpus").glob("*.pdf"))[0]
    (workspace / "corpus" / document.name).write_bytes(document.read_bytes())
    (tmp_path / names.JOB_INPUT_KEY).write_text(plan.data[names.JOB_INPUT_KEY])
    code, message = ended(
        tmp_path, ["run", "--stage", "preflight", "--input", str(tmp_path / names.JOB_INPUT_KEY), "--workspace", str(workspace), "--run-uid", UID]
    )
    assert code == ExitCode.DONE, message
    job = job_with(bind(plan.jobs[0], kind="TrainingRun", uid=UID, attempt=1), "Complete")
    fact = read_job(job, (pod_with(job, terminated(0, message, reason="Completed"), phase="Succeeded"),))
    assert isinstance(fact, Done), fact
