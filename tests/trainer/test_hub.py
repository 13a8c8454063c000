"""A base model of the hub: what a download that cannot be says, and when downloads are allowed at all."""

import json
import os
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from huggingface_hub import constants
from mark_crds.job_output import Result
from mark_crds.shared import BaseModelReference
from mark_trainer import base_model, evaluate
from mark_trainer.failures import MachineTrouble, UserMistake
from mark_trainer.publish import publish
from mark_trainer.workspace import Work, Workspace

COMMIT = "a" * 40
MODEL = BaseModelReference(hugging_face_id="org/name", revision=COMMIT)
HUB = {"huggingFaceId": "org/name", "revision": COMMIT, "digest": "d"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets the hub's own client speak to another address, with an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return lambda address: monkeypatch.setattr(constants, "ENDPOINT", address)


@pytest.fixture
def refusing() -> Iterator[Callable[[str], str]]:
    """Starts a server that answers everything with one of the hub's errors; gives its address."""
    servers: list[HTTPServer] = []

    def start(error: str) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(404)
                self.send_header("X-Error-Code", error)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *arguments: Any) -> None:
                """Not into the tests' output."""

        servers.append(HTTPServer(("127.0.0.1", 0), Handler))
        Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("error", ["RepoNotFound", "RevisionNotFound", "GatedRepo"])
def test_a_model_that_the_hub_does_not_have_is_the_user_s_mistake(
    tmp_path: Path, hub: Callable[[str], None], refusing: Callable[[str], str], error: str
) -> None:
    hub(refusing(error))
    with pytest.raises(
        UserMistake, match=r"baseModel\.huggingFaceId: .* no model org/name .* copy the model into"
    ) as it:
        base_model.folder_of(MODEL, tmp_path)
    assert it.value.reason == "NoHubModel"


@pytest.mark.slow  # the client tries again and again
def test_a_hub_that_does_not_answer_is_machine_trouble(tmp_path: Path, hub: Callable[[str], None]) -> None:
    hub("http://127.0.0.1:1")
    with pytest.raises(
        MachineTrouble, match=r"baseModel\.huggingFaceId: org/name could not be .* let the Pods reach it"
    ):
        base_model.folder_of(MODEL, tmp_path)


@pytest.mark.parametrize(
    ("adapter_base", "own_base", "offline"),
    [
        (HUB, None, "0"),
        ({"path": "base/tiny", "digest": "d"}, None, "1"),
        (HUB, {"path": "base/tiny"}, "1"),
        ({"path": "base/tiny", "digest": "d"}, {"huggingFaceId": "org/name", "revision": COMMIT}, "0"),
    ],
)
def test_only_a_base_model_of_the_hub_may_be_downloaded_be_it_the_adapter_s(
    run_trainer: Callable[..., tuple[int, Result]],
    job_input: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    adapter_base: dict[str, str],
    own_base: dict[str, str] | None,
    offline: str,
) -> None:
    found: list[str] = []

    def run(work: Work) -> Result:
        found.append(os.environ["HF_HUB_OFFLINE"])
        return work.done("Measured", "measured")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(evaluate, "run", run)
    workspace = Workspace(tmp_path)
    folder = workspace.staging_folder("run-0", "adapter")
    (folder / "adapter_model.safetensors").write_text(json.dumps(adapter_base))
    model = {"name": "m", "adapterPath": publish(workspace, folder, "adapters", {"base": adapter_base}).path}
    parts = {"kind": "EvalRun", "stages": ["eval"], "evaluatedModel": model, "baseModel": own_base}
    code, result = run_trainer("eval", job_input(**parts), tmp_path)
    assert (code, result.reason, found) == (0, "Measured", [offline])
