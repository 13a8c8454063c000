"""The base model: loads any, and builds a small real one from texts (tokenizer, next-token training, safetensors).

The small one exists so that tests and the demo learn something true on two CPU cores, with no download. It must never
see a text of the run's own corpus: who builds it gives it other texts.
"""

import hashlib
import json
import math
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from mark_crds.shared import BaseModelReference
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
)
from transformers.utils.logging import disable_progress_bar

from mark_trainer.failures import MachineTrouble, UserMistake, failure_of
from mark_trainer.likelihood import UNIGRAM_FILE, Unigram, text_nats
from mark_trainer.progress import Progress
from mark_trainer.publish import file_digest, write_manifest

BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"

VOCABULARY = 2048
HIDDEN, LAYERS, HEADS, FEED_FORWARD = 192, 4, 6, 512  # Llama: 2.2 M parameters with tied embeddings
MAMBA_STATE = 16  # Mamba of the same width and depth: 1.5 M parameters
FAMILIES = ("llama", "mamba")
CONTEXT_TOKENS = 1024
BLOCK_TOKENS = 512
BLOCKS_A_STEP = 2
PEAK_LEARNING_RATE = 3e-3
WARM_UP_SHARE = 0.05
HELD_OUT_EVERY = 20  # one text in twenty is kept back, to measure what was learned


@dataclass(frozen=True)
class BaseModel:
    """A loaded base model, its tokenizer, and the digest of the files that determine both."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    folder: Path
    digest: str


def load(reference: BaseModelReference, workspace: Path, device: torch.device, dtype: torch.dtype) -> BaseModel:
    """The base model of the spec, from safetensors only and without foreign code."""
    disable_progress_bar()
    folder = folder_of(reference, workspace)
    tokenizer = load_tokenizer(folder)
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if hasattr(config, "use_mambapy"):
        # A scan in parallel: 3 to 13 times faster than token by token. The layers read it when made.
        config.use_mambapy = True
    model = AutoModelForCausalLM.from_pretrained(
        folder, config=config, use_safetensors=True, local_files_only=True, dtype=dtype
    )
    # The folder's own habits, such as a repetition penalty, would fill in whatever generate() is not told.
    model.generation_config = GenerationConfig()
    return BaseModel(model.to(device), tokenizer, folder, folder_digest(folder))


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder. One without a pad token pads with the stop token, which our masks hide."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if tokenizer.eos_token_id is None:
        raise UserMistake(
            "NoStopToken",
            f"baseModel: the tokenizer in {folder} has no eos_token; set one in its tokenizer_config.json",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def folder_of(reference: BaseModelReference, workspace: Path) -> Path:
    """The folder that holds the base model's files; a hub model is fetched at its pinned commit."""
    if reference.path is not None:
        folder = workspace / reference.path
        if not (folder / "config.json").is_file():
            raise UserMistake(
                "NoBaseModel",
                f"baseModel.path: {reference.path} has no config.json in the workspace; put a model there",
            )
        return folder
    return downloaded(str(reference.hugging_face_id), str(reference.revision))


def downloaded(name: str, revision: str) -> Path:
    """The folder of a hub model at a commit; of its files those that are needed."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    kinds = ["*.json", "*.safetensors", "tokenizer.model", "*.txt"]
    cure = "or copy the model into the workspace and name it in baseModel.path"
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=kinds))
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UserMistake(
            "NoHubModel",
            f"baseModel.huggingFaceId: the hub has no model {name} that all may see, at commit {revision}; "
            f"correct huggingFaceId and revision, {cure}",
        ) from error
    except Exception as error:
        if failure_of(error).reason != "UnexpectedError":
            raise
        first = str(error).partition("\n")[0]
        raise MachineTrouble(
            "NotDownloaded",
            f"baseModel.huggingFaceId: {name} could not be downloaded from the hub ({type(error).__name__}: {first}); "
            f"let the Pods reach it, {cure}",
        ) from error


def folder_digest(folder: Path) -> str:
    """sha256 over names and digests of the files that determine what model and tokenizer compute."""
    names = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model"]
    paths = [folder / name for name in names if (folder / name).is_file()] + sorted(folder.glob("*.safetensors*"))
    lines = sorted(f"{file_digest(path)}  {path.name}\n" for path in paths)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Building a small one


def build(
    texts: Path,
    out: Path,
    *,
    family: str = "llama",
    seed: int = 7,
    steps: int = 400,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Builds tokenizer and model from the `*.txt` of a folder, into `out` by one rename; returns the provenance.

    The same texts, family, seed, steps, library versions and number of threads give the same bytes.
    """
    started = time.monotonic()
    progress = progress or Progress("base model")
    paths = sorted(texts.glob("*.txt"))
    if len(paths) < 2:
        raise UserMistake("TooFewTexts", f"--texts {texts}: needs at least two .txt files, has {len(paths)}; add texts")
    documents = {path.name: path.read_text(encoding="utf-8", errors="replace") for path in paths}
    held_out = sorted(documents)[HELD_OUT_EVERY // 2 :: HELD_OUT_EVERY] or sorted(documents)[-1:]
    training = [text for name, text in documents.items() if name not in held_out]

    tokenizer = train_tokenizer(training)
    ids = [
        [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        for text in training
    ]
    unigram = Unigram.fit(ids, len(tokenizer))
    model = new_model(family, tokenizer, seed)
    train(model, ids, steps=steps, seed=seed, progress=progress)

    model.eval()
    kept_back = [tokenizer.encode(documents[name], add_special_tokens=False) for name in held_out]
    nats = text_nats(model, kept_back, tokenizer.bos_token_id)
    staged = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(staged, ignore_errors=True)
    model.save_pretrained(staged)
    tokenizer.save_pretrained(staged)
    (staged / UNIGRAM_FILE).write_text(json.dumps(unigram.to_dict(), separators=(",", ":")) + "\n")
    provenance = {
        "kind": "baseModel",
        "family": family,
        "seed": seed,
        "steps": steps,
        "tokensSeen": steps * BLOCKS_A_STEP * BLOCK_TOKENS,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "texts": {path.name: file_digest(path) for path in paths},
        "heldOut": {
            "texts": held_out,
            "tokens": sum(len(document) for document in kept_back),
            "nats": mean_nats(nats),
            "unigramNats": mean_nats(unigram.nats(kept_back)),
        },
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
    }
    write_manifest(staged, provenance)
    shutil.rmtree(out, ignore_errors=True)
    staged.rename(out)
    held = provenance["heldOut"]
    print(
        f"base model: {provenance['parameters']:,} parameters, {held['nats']:.3f} nats a token on held-out text "
        f"(unigram {held['unigramNats']:.3f}), {time.monotonic() - started:.0f} s, in {out}",
        flush=True,
    )
    return provenance


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: every text has tokens and comes back unchanged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )


def new_model(family: str, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """A small model of the family with random weights."""
    torch.manual_seed(seed)
    shared: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if family == "mamba":
        return MambaForCausalLM(MambaConfig(state_size=MAMBA_STATE, use_mambapy=True, **shared)).float()
    return LlamaForCausalLM(
        LlamaConfig(
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS // 2,
            intermediate_size=FEED_FORWARD,
            max_position_embeddings=CONTEXT_TOKENS,
            **shared,
        )
    ).float()


def train(model: PreTrainedModel, documents: list[list[int]], *, steps: int, seed: int, progress: Progress) -> None:
    """Next-token training on packed blocks: AdamW, warm-up and cosine, gradients clipped at 1."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = get_cosine_schedule_with_warmup(optimizer, max(1, round(steps * WARM_UP_SHARE)), steps)
    batches = packed_batches(documents, seed)
    model.train()
    started = time.monotonic()
    for step in range(1, steps + 1):
        ids = next(batches)  # (BLOCKS_A_STEP, BLOCK_TOKENS)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        speed = step * ids.numel() / (time.monotonic() - started)
        progress.report(step, steps, loss=loss.item(), tokensPerSecond=speed)
    progress.close()


def packed_batches(documents: list[list[int]], seed: int) -> Iterator[torch.Tensor]:
    """Endless batches of blocks; each pass joins the documents in a new order and starts at a new offset."""
    generator = random.Random(seed)
    batch: list[list[int]] = []
    while True:
        order = generator.sample(documents, len(documents))
        stream = [token for document in order for token in document]
        stream *= math.ceil(2 * BLOCK_TOKENS / len(stream))
        starts = list(range(generator.randrange(BLOCK_TOKENS), len(stream) - BLOCK_TOKENS, BLOCK_TOKENS))
        for start in generator.sample(starts, len(starts)):
            batch.append(stream[start : start + BLOCK_TOKENS])
            if len(batch) == BLOCKS_A_STEP:
                yield torch.tensor(batch)
                batch = []


def mean_nats(pairs: list[tuple[float, int]]) -> float:
    """Nats a token over all texts, from (nats, tokens) of each."""
    return sum(nats for nats, _ in pairs) / max(1, sum(tokens for _, tokens in pairs))
