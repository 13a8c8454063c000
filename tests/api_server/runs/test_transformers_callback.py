"""transformers' own KubeflowCallback, unmodified, in a real training: it reports to our progress server with a token that a real API server
reviews, and a server that takes nothing leaves its training alone."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import KubeflowCallback

STEPS = 12
STEP_SECONDS = 0.6  # the callback posts every five seconds


class SlowRows(torch.utils.data.Dataset[Any]):
    """Rows of a few tokens; reading one takes a while, so that the callback finds time for a post on the way."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        time.sleep(self._seconds)
        ids = torch.tensor([index % 7, 3, 5, 1])
        return {"input_ids": ids, "labels": ids}


def train(folder: Any, seconds: float = STEP_SECONDS) -> Trainer:
    """A real training whose one reporter is found by transformers itself, from the environment."""
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, max_position_embeddings=16
    )  # fmt: skip
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=1,
        logging_steps=1,
        save_strategy="no",
        report_to="kubeflow",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(LlamaForCausalLM(config), arguments, train_dataset=SlowRows(seconds))
    trainer.train()
    return trainer


def reporters(trainer: Trainer) -> list[TrainerCallback]:
    return [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, KubeflowCallback)]


@pytest.fixture
def pod(make_operator: Any, make_bench: Any, api_server: Any, namespace: str, tmp_path: Any) -> Iterator[tuple[Any, dict[str, str]]]:
    """(bench, the environment of a started run's Pod, with its files where this process can read them)."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    scope = {"operatorNamespace": namespace, "watchNamespaces": [namespace], "timings": {"progressSeconds": 1}}
    operator = make_operator(api_server, tmp_path, progressUrl=f"https://127.0.0.1:{port}", progressPort=port, **scope)
    operator.start()
    bench = make_bench(api_server, namespace)
    bench.run()
    bench.wait_for_state("PlanReady", seconds=60)
    bench.confirm()
    job = bench.wait_for_job("run-t-preflight-1")
    name = bench.pod_of(job)
    pod_spec = job["spec"]["template"]["spec"]
    environment = {item["name"]: item["value"] for item in pod_spec["containers"][0]["env"]}
    sources = next(volume["projected"]["sources"] for volume in pod_spec["volumes"] if volume["name"] == "progress")
    token = next(source["serviceAccountToken"] for source in sources if "serviceAccountToken" in source)
    uid = bench.get("pod", name)["metadata"]["uid"]
    bound = ["--bound-object-kind=Pod", f"--bound-object-name={name}", f"--bound-object-uid={uid}"]
    words = ["create", "token", "default", "-n", namespace, f"--audience={token['audience']}", *bound]
    (tmp_path / "token").write_text(api_server.must(*words))
    (tmp_path / "ca.crt").write_text(bench.get("configmap", "run-t-plan")["data"]["ca.crt"])
    # The kubelet would mount these two files where the environment says.
    environment["KUBEFLOW_TRAINER_SERVER_CA_CERT"] = str(tmp_path / "ca.crt")
    environment["KUBEFLOW_TRAINER_SERVER_TOKEN"] = str(tmp_path / "token")
    yield bench, environment
    operator.kill()


@pytest.mark.slow
def test_its_progress_and_its_numbers_arrive(
    pod: tuple[Any, dict[str, str]], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, environment = pod
    for name, value in environment.items():
        if name.startswith("KUBEFLOW"):
            monkeypatch.setenv(name, value)
    seen: list[int] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.3):
            seen.append(bench.status().get("progress", {}).get("percent", -1))

    watcher = threading.Thread(target=look)
    watcher.start()
    trainer = train(tmp_path / "out")
    over.set()
    watcher.join()
    assert len(reporters(trainer)) == 1, "transformers registered its callback by itself"
    progress = bench.wait(lambda: (found := bench.status()["progress"])["percent"] == 100 and found)
    assert progress["stage"] == "preflight"
    between = [percent for percent in seen if 0 < percent < 100]
    assert between and seen == sorted(seen), seen
    stored = json.loads(bench.get("configmap", "run-t-metrics")["data"]["metrics.json"])
    curves = {item["name"]: item["points"] for item in stored["series"]}
    assert {"loss", "learning_rate", "grad_norm"} <= curves.keys()
    losses = {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}
    step, _, value = curves["loss"][0]
    assert float(value) in (losses[step], losses.get(step - 1)), "the number that transformers logged"


@pytest.mark.slow
def test_a_server_that_refuses_leaves_its_training_alone(
    pod: tuple[Any, dict[str, str]], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, environment = pod
    for name, value in environment.items():
        if name.startswith("KUBEFLOW"):
            monkeypatch.setenv(name, value)
    (tmp_path / "token").write_text("not a token of this cluster")
    trainer = train(tmp_path / "out", seconds=0)
    assert trainer.state.global_step == STEPS and len(reporters(trainer)) == 1
    assert "progress" not in bench.status()
