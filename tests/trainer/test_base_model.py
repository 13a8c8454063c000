"""Building a small base model: real files, the same bytes again, and refusals that say what is missing."""

import json
from pathlib import Path

import pytest
import tiny_training
import torch
from mark_crds.shared import BaseModelReference
from mark_trainer import base_model
from mark_trainer.failures import UserMistake
from mark_trainer.likelihood import UNIGRAM_FILE, Unigram
from mark_trainer.publish import provenance_of, verify_folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for number in range(6):
        clauses = [clause for part in range(40) for clause in tiny_training.contract(40 * number + part)]
        (folder / f"{number}.txt").write_text("\n".join(clauses))
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"VOCABULARY": 400, "HIDDEN": 32, "LAYERS": 2, "HEADS": 4, "FEED_FORWARD": 64, "BLOCK_TOKENS": 128}
    for name, value in sizes.items():
        monkeypatch.setattr(base_model, name, value)


def test_it_learns_more_than_word_frequencies(small: None, texts: Path, tmp_path: Path) -> None:
    provenance = base_model.build(texts, tmp_path / "base", steps=120)
    held = provenance["heldOut"]
    assert held["texts"] == ["5.txt"]
    assert held["nats"] < held["unigramNats"]
    folder = tmp_path / "base"
    verify_folder(folder, "base")
    assert provenance_of(folder, "base") == json.loads(json.dumps(provenance))
    tokenizer = base_model.load_tokenizer(folder)
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert len(special) == 3
    assert len(Unigram.read(folder / UNIGRAM_FILE).counts) == len(tokenizer)
    assert tokenizer.decode(tokenizer.encode("§ 1  Ελλάδα\n\n…", add_special_tokens=False)) == "§ 1  Ελλάδα\n\n…"
    assert (folder / "model.safetensors").is_file() and not list(folder.glob("*.bin"))
    reference = BaseModelReference(path="base")
    base = base_model.load(reference, tmp_path, torch.device("cpu"), torch.float32)
    assert base.digest == base_model.folder_digest(folder)


def test_the_same_seed_gives_the_same_bytes(small: None, texts: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        base_model.build(texts, tmp_path / name, steps=3, seed=seed)
    digests = [base_model.folder_digest(tmp_path / name) for name in ("one", "two", "three")]
    assert digests[0] == digests[1] != digests[2]


def test_too_few_texts_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match=r"--texts .* at least two \.txt files, has 0"):
        base_model.build(tmp_path, tmp_path / "base")


def test_a_tokenizer_without_stop_token_is_refused(tmp_path: Path) -> None:
    tiny_training.write_base(tmp_path)
    for name in ("tokenizer_config.json",):
        config = json.loads((tmp_path / name).read_text())
        config.pop("eos_token")
        (tmp_path / name).write_text(json.dumps(config))
    with pytest.raises(UserMistake, match="no eos_token"):
        base_model.load_tokenizer(tmp_path)
