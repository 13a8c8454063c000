"""Every sample of the repository: the typed models and a real API server accept it as it stands."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from mark_crds import names
from mark_crds.eval_run import EvalRun
from mark_crds.registered_model import RegisteredModel
from mark_crds.training_run import TrainingRun
from mark_operator.planning import plan
from mark_operator.run.plan import Rendering
from mark_operator.seen import RunKey
from mark_operator.settings import Settings

MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"
SAMPLES = sorted((MANIFESTS / "samples").glob("*.yaml"))
GITOPS_RUNS = sorted((MANIFESTS / "gitops").glob("*-commit*/[!s]*.yaml"))
MODELS = {"TrainingRun": TrainingRun, "EvalRun": EvalRun, "Model": RegisteredModel}


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def own_documents(path: Path) -> list[dict[str, Any]]:
    """The documents of our own API group."""
    return [document for document in documents(path) if document["apiVersion"] == names.API_VERSION]


@pytest.mark.parametrize("path", [*SAMPLES, *GITOPS_RUNS], ids=lambda path: str(path.relative_to(MANIFESTS)))
def test_models_accept(path: Path) -> None:
    for document in own_documents(path):
        MODELS[document["kind"]].model_validate({"spec": document["spec"]})


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_server_accepts(api_server, namespace: str, path: Path) -> None:
    for document in documents(path):
        where = ["-n", namespace] if document["kind"] in MODELS or document["kind"] == "PersistentVolumeClaim" else []
        if "namespace" in document["metadata"]:
            document["metadata"]["namespace"] = namespace  # a dry run does not make the sample's own namespace
        api_server.must("apply", "--dry-run=server", "--validate=strict", *where, "-f", "-", stdin=document)


@pytest.mark.parametrize("path", [*SAMPLES, *GITOPS_RUNS], ids=lambda path: str(path.relative_to(MANIFESTS)))
def test_operator_can_plan(path: Path) -> None:
    for document in own_documents(path):
        if document["kind"] != "TrainingRun":  # an EvalRun of a Model is planned once the Model is there
            continue
        spec = TrainingRun.model_validate({"spec": document["spec"]}).to_dict()["spec"]
        planned = plan(RunKey("TrainingRun", "default", document["metadata"]["name"]), spec, Settings())
        assert isinstance(planned, Rendering), planned


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_samples_start_nothing_and_take_no_confirmation_back(path: Path) -> None:
    for document in own_documents(path):
        assert not {"dryRun", "confirm", "confirmPlan", "confirmedBy"} & set(document["spec"])
        assert "namespace" not in document["metadata"]


@pytest.mark.parametrize("kind", MODELS)
def test_there_is_a_sample_of_every_kind(kind: str) -> None:
    assert any(document["kind"] == kind for path in SAMPLES for document in own_documents(path))


def test_applying_the_sample_again_keeps_a_confirmation(api_server, namespace: str) -> None:
    sample = str(MANIFESTS / "samples" / "trainingrun-lora.yaml")
    confirmed = [
        "get",
        "trainingrun",
        "contracts-lora",
        "-n",
        namespace,
        "-o",
        "jsonpath={.spec.dryRun} {.spec.confirm}",
    ]
    api_server.must("apply", "-n", namespace, "-f", sample)
    assert api_server.must(*confirmed) == "true false"
    switches = '{"spec": {"dryRun": false, "confirm": true}}'
    api_server.must("patch", "trainingrun", "contracts-lora", "-n", namespace, "--type=merge", "-p", switches)
    api_server.must("apply", "-n", namespace, "-f", sample)
    assert api_server.must(*confirmed) == "false true"
