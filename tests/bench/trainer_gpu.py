#!/usr/bin/env python3
"""LoRA on one GPU: a Llama of 8 billion random weights, rank 16, bfloat16, full rows of 4096 tokens, 32 rows a step.

The published number for that work is NeMo AutoModel's on one H100: 12,473 tokens/s, 402 TFLOP/s, 41 % of the peak. Theirs and ours
count 4 operations a weight and token (forward, and backward for activations; the frozen weights need no gradient) and none for
attention. With --rehearse the same code runs a tiny model on a CPU, which says that it works and nothing about speed.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from mark_crds.job_input import JobInput
from mark_trainer import base_model, lora
from mark_trainer.dataset import TRAIN_FILE, encode_rows, read_rows
from mark_trainer.prompts import PromptBuilder
from mark_trainer.workspace import Work, Workspace
from trainer_ratios import Clock, contract, job_input, write_rows
from transformers import LlamaConfig, LlamaForCausalLM

PUBLISHED_TOKENS_A_SECOND, PUBLISHED_SHARE = 12_473, 0.41
# Dense bfloat16 peaks in 10^12 operations a second, from the vendor's data sheets.
PEAKS = {"H200": 989, "H100": 989, "A100": 312}
OPERATIONS_A_WEIGHT_AND_TOKEN = 4


@dataclass(frozen=True)
class Shape:
    """A model and the rows to train it on."""

    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    feed_forward: int
    vocabulary: int
    row_tokens: int
    batch: int
    accumulation: int
    steps: int
    answer_tokens: int


EIGHT_BILLION = Shape(4096, 32, 32, 8, 14336, 128_256, 4096, batch=2, accumulation=16, steps=6, answer_tokens=3900)
REHEARSAL = Shape(64, 2, 4, 2, 128, 2048, 256, batch=2, accumulation=2, steps=3, answer_tokens=150)


def write_model(root: Path, shape: Shape, device: torch.device) -> int:
    """The model with random weights, as safetensors; the number of its weights."""
    tokenizer = base_model.train_tokenizer(["\n".join(contract(number)) for number in range(400)])
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        intermediate_size=shape.feed_forward,
        max_position_embeddings=2 * shape.row_tokens,
        rope_theta=500_000.0,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="bfloat16" if device.type == "cuda" else "float32",
    )
    torch.manual_seed(1)
    with device:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16 if device.type == "cuda" else torch.float32)
        model = LlamaForCausalLM(config)
        torch.set_default_dtype(before)
    model.save_pretrained(root / "base/llama")
    tokenizer.save_pretrained(root / "base/llama")
    return sum(parameter.numel() for parameter in model.parameters())


def work_of(root: Path, shape: Shape, clock: Clock) -> Work:
    job: JobInput = job_input(
        stages=["lora"],
        baseModel={"path": "base/llama"},
        dataset={"path": "datasets/full"},
        lora={
            "epochs": 1, "rank": 16, "alpha": 32, "dropout": "0", "learningRate": "0.0001", "batchSize": shape.batch,
            "gradientAccumulationSteps": shape.accumulation, "maxLength": shape.row_tokens,
        },
        evaluation={"maxNewTokens": shape.answer_tokens + 8},
    )  # fmt: skip
    return Work(job_input=job, workspace=Workspace(root), run_uid="bench", attempt=1, stage="lora", progress=clock)


def tokens_of(root: Path, shape: Shape) -> int:
    """Tokens of all rows, as the stage encodes them."""
    builder = PromptBuilder(base_model.load_tokenizer(root / "base/llama"), shape.row_tokens - shape.answer_tokens - 8)
    encoded = encode_rows(read_rows(root / "datasets/full", TRAIN_FILE), builder, max_length=shape.row_tokens, seed=7)
    assert not encoded.too_long, f"{len(encoded.too_long)} rows do not fit"
    return sum(len(example.ids) for example in encoded.examples)


def measure(root: Path, shape: Shape, device: torch.device) -> tuple[float, int]:
    """Tokens a second after the first step, and the model's number of weights."""
    weights = write_model(root, shape, device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    rows = shape.batch * shape.accumulation * shape.steps
    write_rows(root, "full", [shape.row_tokens - 24] * rows, shape.answer_tokens)
    clock = Clock(now=time.perf_counter)
    lora.run(work_of(root, shape, clock))
    return clock.rate(tokens_of(root, shape)), weights


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rehearse", action="store_true", help="a tiny model on a CPU: checks the code, measures nothing"
    )
    rehearse = parser.parse_args().rehearse
    if not rehearse and not torch.cuda.is_available():
        print("no GPU here: run it where there is one, or --rehearse", file=sys.stderr)
        return 3
    device = torch.device("cpu" if rehearse else "cuda")
    with tempfile.TemporaryDirectory() as folder:
        rate, weights = measure(Path(folder), REHEARSAL if rehearse else EIGHT_BILLION, device)
    teraflops = OPERATIONS_A_WEIGHT_AND_TOKEN * weights * rate / 1e12
    name = "CPU, rehearsal" if rehearse else torch.cuda.get_device_name()
    print(f"\n{name}: {weights / 1e9:.3g} billion weights, {rate:,.0f} tokens/s, {teraflops:,.3g} TFLOP/s")
    peak = next((peak for known, peak in PEAKS.items() if known in name), None)
    if peak is not None:
        share, ratio = teraflops / peak, rate / PUBLISHED_TOKENS_A_SECOND
        memory = torch.cuda.max_memory_allocated() / 2**30
        print(
            f"MFU {share:.1%} of {peak} TFLOP/s (published {PUBLISHED_SHARE:.0%} on one H100); {ratio:.2f} of the published tokens/s; {memory:.0f} GiB"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
