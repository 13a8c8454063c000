"""Progress reaches a real HTTPS server in the words of Kubeflow's protocol, and costs nothing when there is none."""

import datetime
import http.server
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from mark_trainer import progress
from mark_trainer.progress import Progress, Server
from transformers import TrainerState, TrainingArguments
from transformers.integrations.integration_utils import KubeflowCallback


class Listener(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.heard.append((self.headers["Authorization"], json.loads(body)))
        self.send_response(self.server.answer)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Quiet."""


def certificate(folder: Path) -> Path:
    """A self-signed certificate for localhost, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "ca.crt"
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "tls.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM) + pem)
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Any]:
    authority = certificate(tmp_path)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.heard, server.answer = [], 200
    (tmp_path / "token").write_text("secret\n")
    server.environment = {
        "KUBEFLOW_TRAINER_SERVER_URL": f"https://localhost:{server.server_port}/progress",
        "KUBEFLOW_TRAINER_SERVER_CA_CERT": str(authority),
        "KUBEFLOW_TRAINER_SERVER_TOKEN": str(tmp_path / "token"),
    }
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def until(condition: Any, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def test_a_status_arrives_in_the_words_of_the_protocol(listener: Any) -> None:
    told = Progress("lora", Server.from_environment(listener.environment))
    told.report(10, 40, loss=3.25, epoch=0.5)
    until(lambda: listener.heard)
    token, body = listener.heard[0]
    assert token == "Bearer secret"
    status = body["trainerStatus"]
    assert status["progressPercentage"] == 25
    assert status["metrics"] == [
        {"name": "step", "value": "10"},
        {"name": "steps", "value": "40"},
        {"name": "loss", "value": "3.25"},
        {"name": "epoch", "value": "0.5"},
    ]
    assert datetime.datetime.fromisoformat(status["lastUpdatedTime"]).tzinfo is not None
    told.close()


def test_the_body_has_the_shape_of_transformers_own_callback(listener: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in listener.environment.items():
        monkeypatch.setenv(name, value)
    theirs, arguments = KubeflowCallback(), TrainingArguments(output_dir="none", use_cpu=True, report_to="none")
    state = TrainerState(global_step=1, max_steps=4)
    theirs.on_train_begin(arguments, state, None)
    theirs._last_update_time = 0
    theirs.on_step_end(arguments, state, None)
    told = Progress.from_environment("lora")
    told.report(0, 4)
    until(lambda: len(listener.heard) == 3)
    told.report(4, 4)
    until(lambda: len(listener.heard) == 4)
    told.close()

    def shape(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shape(item) for key, item in value.items()}
        return [shape(value[0])] if isinstance(value, list) else type(value)

    assert shape(listener.heard[1]) == shape(listener.heard[3])


def test_the_newest_status_wins_and_the_last_goes_at_once(listener: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_POSTS", 0.3)
    told = Progress("lora", Server.from_environment(listener.environment))
    told.report(0, 1000)
    until(lambda: listener.heard)
    for step in range(100):
        told.report(step, 1000)
    until(lambda: len(listener.heard) == 2)
    assert listener.heard[1][1]["trainerStatus"]["metrics"][0]["value"] == "99"
    told.report(1000, 1000)
    told.close()
    percents = [body["trainerStatus"]["progressPercentage"] for _, body in listener.heard]
    assert percents[-1] == 100 and percents == sorted(percents)
    assert len(percents) <= 4


def test_every_post_after_a_checkpoint_tells_of_it(listener: Any) -> None:
    told = Progress("lora", Server.from_environment(listener.environment))
    told.kept(20)
    told.report(21, 40, loss=1.5)
    until(lambda: listener.heard)
    told.close()
    metrics = {item["name"]: item["value"] for item in listener.heard[0][1]["trainerStatus"]["metrics"]}
    assert metrics == {"step": "21", "steps": "40", "loss": "1.5", "checkpointStep": "20", "checkpointAgeSeconds": "0"}


def test_what_waits_is_sent_at_the_close(listener: Any) -> None:
    told = Progress("lora", Server.from_environment(listener.environment))
    told.report(0, 10)
    until(lambda: listener.heard)
    told.report(5, 10)
    told.close()
    assert listener.heard[-1][1]["trainerStatus"]["progressPercentage"] == 50


@pytest.mark.parametrize(
    "server",
    [
        Server("https://127.0.0.1:9/progress", None, None),
        Server("https://localhost.invalid/progress", None, None),
        Server("http://10.255.255.1/progress", None, None),  # nobody answers
        Server("no address", None, None),
        Server("https://127.0.0.1:9/", "/no/ca", "/no/token"),
    ],
    ids=["refused", "unknown", "silent", "senseless", "no-files"],
)
def test_no_server_costs_next_to_nothing(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    told = Progress("lora", server)
    begun = time.monotonic()
    for step in range(1000):
        told.report(step, 1000)
    assert time.monotonic() - begun < 1
    told.close()
    assert time.monotonic() - begun < 5
    assert caplog.text.count("did not take it") <= 1


@pytest.fixture(params=["silent", "slow", "refused"])
def useless(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server that takes no post: it never answers, answers after seconds, or is not there."""
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/progress"
    held: list[socket.socket] = []

    def accept() -> None:
        while request.param != "refused":
            try:
                held.append(listener.accept()[0])
                if request.param == "slow":
                    time.sleep(2)
                    held[-1].sendall(b"HTTP/1.0 503 Busy\r\n\r\n")
                    held.pop().close()
            except OSError:  # the test is over
                return

    if request.param == "refused":
        listener.close()
    threading.Thread(target=accept, daemon=True).start()
    yield address
    listener.close()
    for connection in held:
        connection.close()


@pytest.mark.slow
def test_a_useless_server_takes_no_hundredth_of_the_training(useless: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real steps of a small network, and how much of its own time the training thread spends on telling its progress."""
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_POSTS", 0.2)  # more posts than in earnest
    told, steps = Progress("lora", Server(useless, None, None)), 80
    model, rows = torch.nn.Linear(1024, 1024), torch.randn(256, 1024)
    for _ in range(3):
        model(rows).square().mean().backward()
    telling_cpu = telling_wall = 0.0
    begun_cpu, begun_wall = time.thread_time(), time.perf_counter()
    for step in range(steps):
        loss = model(rows).square().mean()
        loss.backward()
        before_cpu, before_wall = time.thread_time(), time.perf_counter()
        told.report(step, steps, loss=1.0, learningRate=2e-4, gradNorm=0.5, tokensPerSecond=1000.0)
        telling_cpu += time.thread_time() - before_cpu
        telling_wall += time.perf_counter() - before_wall
    cpu, wall = time.thread_time() - begun_cpu, time.perf_counter() - begun_wall
    told.close()
    print(f"{useless}: {telling_cpu / cpu:.3%} of the thread's time, {telling_wall / wall:.3%} of the clock's, in {wall:.1f} s")
    assert wall > 0.5, "long enough for several posts"
    assert telling_cpu / cpu < 0.01
    # A post in the training thread would take its whole timeout, which is longer than all of this.
    assert telling_wall / wall < 0.1


def test_a_refusal_is_logged_once(listener: Any, caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_POSTS", 0.05)
    listener.answer = 503
    told = Progress("lora", Server.from_environment(listener.environment))
    told.report(1, 10)
    until(lambda: len(listener.heard) >= 2)
    told.report(10, 10)
    told.close()
    assert caplog.text.count("did not take it") == 1


def test_without_a_server_there_are_lines_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert Server.from_environment({}) is None
    told = Progress("lora")
    for step in range(101):
        told.report(step, 100, loss=2.5)
    told.close()
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["lora:   0 %  step 0/100  loss 2.5", "lora: 100 %  step 100/100  loss 2.5"]
