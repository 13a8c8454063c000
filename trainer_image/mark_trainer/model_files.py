"""The base model of a run, looked at from outside: which one it is, its family, whole weights, a tokenizer.

It must not load the model, nor import a library that could.
"""

import json
import struct
from pathlib import Path
from typing import Any

from mark_crds.job_input import JobInput
from mark_crds.shared import BaseModelReference

from mark_trainer.failures import BadData, UserMistake
from mark_trainer.publish import MANIFEST, provenance_of
from mark_trainer.workspace import Workspace, read_json

# Those that the stage lora has adapter targets for.
TRAINABLE_FAMILIES = ("gemma2", "llama", "mamba", "mistral", "qwen2", "qwen3")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def base_of(job_input: JobInput, workspace: Workspace) -> BaseModelReference | None:
    """The base model that a run names, else the one that the adapter it measures was trained on."""
    measured = job_input.evaluated_model
    if job_input.base_model is not None or measured is None or measured.adapter_path is None:
        return job_input.base_model
    folder = workspace.path(measured.adapter_path)
    if not (folder / MANIFEST).is_file():
        return None
    return trained_on(provenance_of(folder, measured.adapter_path), measured.adapter_path)


def trained_on(provenance: dict[str, Any], name: str) -> BaseModelReference:
    """The base model that an adapter's manifest speaks of; `name` is what errors call the adapter."""
    recorded = provenance.get("base")
    known = ("path", "huggingFaceId", "revision")
    try:
        return BaseModelReference.model_validate({key: recorded[key] for key in known if key in recorded})
    except (TypeError, ValueError) as error:
        raise BadData(
            "NoBaseRecorded",
            f"{name}/{MANIFEST}: does not say on which base model it was trained; set baseModel, or name an adapter "
            "that the stage lora published",
        ) from error


def see_model(folder: Path, name: str) -> dict[str, Any]:
    """The model's config, when its files are whole and need nobody's code; `name` is what errors call the folder."""
    config = _config(folder, name)
    _check_family(config, name)
    _check_weights(folder, name)
    _check_tokenizer(folder, name)
    return config


def _config(folder: Path, name: str) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        raise UserMistake("NoModelConfig", f"baseModel.path: {name} has no config.json; copy the whole model folder")
    config = read_json(folder / "config.json", f"{name}/config.json")
    if not isinstance(config, dict) or "model_type" not in config:
        raise BadData("NoModelType", f"{name}/config.json: has no model_type, so it is no transformers model")
    return config


def _check_family(config: dict[str, Any], name: str) -> None:
    family = config["model_type"]
    if family not in TRAINABLE_FAMILIES:
        raise UserMistake(
            "UnknownModelFamily",
            f"baseModel.path: {name} is of family {family}, and this trainer knows {', '.join(TRAINABLE_FAMILIES)}; "
            "choose another base model",
        )
    if config.get("auto_map"):
        raise UserMistake(
            "ForeignCode",
            f"baseModel.path: {name}/config.json wants to run code of its own (auto_map), which is never done; "
            "use a model of the library itself",
        )


def _check_weights(folder: Path, name: str) -> None:
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        found = f" but {pickles[0]}, which can run code when loaded" if pickles else ""
        raise UserMistake(
            "NoSafetensors", f"baseModel.path: {name} has no .safetensors file{found}; save the model as safetensors"
        )
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = set(read_json(index, f"{name}/{index.name}")["weight_map"].values())
        missing = sorted(shards - {path.name for path in weights})
        if missing:
            raise BadData(
                "WeightsMissing", f"{name}: {missing[0]} is missing, {len(missing)} in all; copy the model again"
            )
    for path in weights:
        if not _is_whole_safetensors(path):
            raise BadData("WeightsBroken", f"{name}/{path.name}: is cut off or no safetensors file; copy it again")


def _is_whole_safetensors(path: Path) -> bool:
    """Whether the file is as long as its header says; the numbers themselves are not read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            return False
        header_bytes = struct.unpack("<Q", start)[0]
        if header_bytes > size - 8:
            return False
        try:
            header = json.loads(file.read(header_bytes))
        except ValueError:
            return False
    ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
    return 8 + header_bytes + max(ends, default=0) == size


def _check_tokenizer(folder: Path, name: str) -> None:
    if not any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise UserMistake(
            "NoTokenizer",
            f"baseModel.path: {name} has no tokenizer.json; copy the tokenizer's files beside the weights",
        )
