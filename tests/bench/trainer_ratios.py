#!/usr/bin/env python3
"""The trainer beside the ways people would otherwise do the same, as ratios of one run on one machine.

Each contender gets the same model files, the same token ids and the same settings, and takes its turn several times; the best
turn counts. Each computes with one thread, and a second is one of processor time, so that other work on the machine does not
decide. Tokens are those of rows, never padding. Words choose parts: fine-tuning, ingest, answers, mamba.
"""

import gc
import logging
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "beds"))

import torch
from datasets import Dataset
from mark_crds.job_input import JobInput
from mark_trainer import base_model, lora
from mark_trainer.answers import answer
from mark_trainer.dataset import TRAIN_FILE, Encoded, encode_rows, read_rows
from mark_trainer.documents import Document, cross_check_document, find_pdf_files, read_document
from mark_trainer.prompts import PromptBuilder
from mark_trainer.workspace import NoProgress, Work, Workspace
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_training import contract, job_input, rows, write_dataset
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForSeq2Seq,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

CORPUS = Path(__file__).resolve().parents[2] / "manifests" / "corpus"
TURNS = 2
# A turn of ingest takes a second, so there is time for more of them.
INGEST_TURNS = 8
MAX_LENGTH, MAX_NEW_TOKENS = 512, 64
BATCH, ACCUMULATION = 8, 2
LEARNING_RATE = "0.001"
RANK = 8


@dataclass
class Line:
    """One comparison, for the table."""

    what: str
    ours: float
    theirs: float
    unit: str
    aim: float

    @property
    def text(self) -> str:
        ratio = self.ours / self.theirs
        met = "met" if ratio >= self.aim else "MISSED"
        return f"| {self.what} | {self.ours:,.0f} {self.unit} | {self.theirs:,.0f} {self.unit} | {ratio:.2f} | {self.aim:g} | {met} |"


def best_of(contenders: dict[str, Callable[[], float]], turns: int = TURNS) -> dict[str, float]:
    """The best of a few turns of each, turn about, so that a slow minute of the machine meets all of them."""
    best: dict[str, float] = dict.fromkeys(contenders, 0.0)
    for turn in range(turns):
        for name, contender in contenders.items():
            gc.collect()
            rate = contender()
            best[name] = max(best[name], rate)
            print(f"  turn {turn + 1}, {name}: {rate:,.0f} a second", flush=True)
    return best


# ---------------------------------------------------------------------------------------------------------------------
# Fine-tuning


@dataclass
class Clock(NoProgress, TrainerCallback):
    """When each optimizer step ended; also a stage's Progress, which hears the same of our own trainer."""

    now: Callable[[], float] = time.process_time
    ends: list[tuple[int, float]] = field(default_factory=list)

    def report(self, step: int, steps: int, **measures: float) -> None:
        self.ends.append((step, self.now()))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.report(state.global_step, state.max_steps)

    def rate(self, tokens: int) -> float:
        """Tokens a second from the end of the first step, which warms up, to the end of the last."""
        (first, began), (last, ended) = self.ends[0], self.ends[-1]
        return tokens * (last - first) / last / (ended - began)


def write_models(root: Path) -> None:
    """The demo's base model, and a Mamba of like size, with random weights and one tokenizer."""
    tokenizer = base_model.train_tokenizer(["\n".join(contract(number)) for number in range(400)])
    shared: dict[str, Any] = {
        "vocab_size": base_model.VOCABULARY,
        "hidden_size": base_model.HIDDEN,
        "num_hidden_layers": base_model.LAYERS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(1)
    llama = LlamaForCausalLM(
        LlamaConfig(
            num_attention_heads=base_model.HEADS,
            num_key_value_heads=base_model.HEADS // 2,
            intermediate_size=base_model.FEED_FORWARD,
            max_position_embeddings=base_model.CONTEXT_TOKENS,
            tie_word_embeddings=True,
            **shared,
        )
    )
    mamba = MambaForCausalLM(MambaConfig(**shared))
    for name, model in (("llama", llama), ("mamba", mamba)):
        model.save_pretrained(root / "base" / name)
        tokenizer.save_pretrained(root / "base" / name)


def write_rows(root: Path, name: str, lengths: list[int], answer_tokens: int | None = None) -> None:
    """A dataset whose rows have about so many tokens each; of these are answer `answer_tokens`, else a third."""
    tokenizer = base_model.load_tokenizer(root / "base/llama")
    words = " ".join(" ".join(contract(number)) for number in range(400)).split()
    random_of = random.Random(7)
    template = rows([1], "train")[0]
    written = []
    for number, tokens in enumerate(lengths):
        at = random_of.randrange(len(words) - 2 * tokens)
        text = tokenizer.encode(" ".join(words[at : at + 2 * tokens]), add_special_tokens=False)
        answered = answer_tokens or min(tokens // 3, MAX_NEW_TOKENS - 2)
        asked = tokens - answered - 16  # the template's own tokens
        row = {
            **template,
            "id": str(number),
            "document": {**template["document"], "digest": f"{number:064x}", "cluster": f"c{number}"},
        }
        row |= {
            "question": tokenizer.decode(text[:asked]).strip(),
            "answer": tokenizer.decode(text[asked : asked + answered]).strip(),
        }
        written.append({**row, "contexts": None, "oraclePassage": None})
    held_out = [
        {**row, "split": "validation", "document": {**row["document"], "cluster": "v"}}
        for row in rows([10_000_000], "validation")
    ]
    write_dataset(root / "datasets" / name, written, held_out)


def short_lengths(count: int) -> list[int]:
    """Lengths as questions and answers have them: most are short, a few are long."""
    random_of = random.Random(3)
    return [int(min(400, max(28, random_of.lognormvariate(3.8, 0.7)))) for _ in range(count)]


def work_of(root: Path, base: str, dataset: str, clock: Clock) -> Work:
    job: JobInput = job_input(
        stages=["lora"],
        baseModel={"path": f"base/{base}"},
        dataset={"path": f"datasets/{dataset}"},
        lora={
            "epochs": 1, "rank": RANK, "alpha": RANK, "dropout": "0", "learningRate": LEARNING_RATE,
            "batchSize": BATCH, "gradientAccumulationSteps": ACCUMULATION, "maxLength": MAX_LENGTH,
        },
        evaluation={"maxNewTokens": MAX_NEW_TOKENS},
    )  # fmt: skip
    return Work(job_input=job, workspace=Workspace(root), run_uid="bench", attempt=1, stage="lora", progress=clock)


def encoded_rows(root: Path, dataset: str) -> Encoded:
    """The very token ids that our stage trains on."""
    builder = PromptBuilder(base_model.load_tokenizer(root / "base/llama"), MAX_LENGTH - MAX_NEW_TOKENS)
    return encode_rows(read_rows(root / "datasets" / dataset, TRAIN_FILE), builder, max_length=MAX_LENGTH, seed=7)


def ours(root: Path, base: str, dataset: str, tokens: int) -> float:
    clock = Clock()
    shutil.rmtree(root / "runs", ignore_errors=True)
    lora.run(work_of(root, base, dataset, clock))
    return clock.rate(tokens)


def plain_model(root: Path, base: str) -> tuple[PeftModel, Any]:
    """The model with an adapter as anybody would make it with peft."""
    model = AutoModelForCausalLM.from_pretrained(root / "base" / base, dtype=torch.float32)
    family = model.config.model_type
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=RANK,
        lora_alpha=RANK,
        lora_dropout=0.0,
        target_modules=list(lora.TARGET_MODULES[family]),
    )
    return get_peft_model(model, adapter), base_model.load_tokenizer(root / "base" / base)


def common(folder: str, rows_a_pass: int, passes: int) -> dict[str, Any]:
    return {
        "output_dir": folder, "num_train_epochs": 1, "per_device_train_batch_size": rows_a_pass,
        "gradient_accumulation_steps": passes, "learning_rate": float(LEARNING_RATE), "weight_decay": 0.0,
        "lr_scheduler_type": "cosine", "optim": "adamw_torch", "use_cpu": True, "bf16": False, "save_strategy": "no",
        "logging_steps": 1, "report_to": "none", "disable_tqdm": True, "dataloader_pin_memory": False,
        "gradient_checkpointing": False,
    }  # fmt: skip


def trl(root: Path, encoded: Encoded, *, packing: bool) -> float:
    """TRL's SFTTrainer with its own collator; packed, with as many tokens a step, in as few passes as that allows."""
    lengths = [len(example.ids) for example in encoded.examples]
    rows_a_pass, passes = BATCH, ACCUMULATION
    if packing:
        packs = max(1, round(BATCH * ACCUMULATION * sum(lengths) / len(lengths) / MAX_LENGTH))
        rows_a_pass, passes = (packs, 1) if packs <= BATCH else (BATCH, packs // BATCH)
    model, tokenizer = plain_model(root, "llama")
    data = Dataset.from_list([{"input_ids": example.ids, "labels": example.labels} for example in encoded.examples])
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(**common(folder, rows_a_pass, passes), max_length=MAX_LENGTH, packing=packing)
        SFTTrainer(
            model=model, args=arguments, train_dataset=data, processing_class=tokenizer, callbacks=[clock]
        ).train()
    return clock.rate(sum(lengths))


def transformers_trainer(root: Path, base: str, encoded: Encoded) -> float:
    """transformers' Trainer with the collator that its documentation names for labels of unequal length."""
    model, tokenizer = plain_model(root, base)
    data = Dataset.from_list(
        [
            {"input_ids": example.ids, "attention_mask": [1] * len(example.ids), "labels": example.labels}
            for example in encoded.examples
        ]
    )
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(**common(folder, BATCH, ACCUMULATION))
        collator = DataCollatorForSeq2Seq(tokenizer)
        Trainer(model=model, args=arguments, train_dataset=data, data_collator=collator, callbacks=[clock]).train()
    return clock.rate(sum(len(example.ids) for example in encoded.examples))


def fine_tuning(root: Path) -> Iterator[Line]:
    # So many short rows that the ten checkpoints, which only ours writes, weigh no more than in a short real run.
    yield from compare(root, "short rows", short_lengths(640), aims=(3.0, 1.0, 1.0))
    yield from compare(root, "full rows", [MAX_LENGTH - 20] * 48, aims=(1.0, 1.0, 1.0))


def compare(root: Path, name: str, lengths: list[int], *, aims: tuple[float, float, float]) -> Iterator[Line]:
    dataset = name.replace(" ", "-")
    write_rows(root, dataset, lengths)
    encoded = encoded_rows(root, dataset)
    sizes = [len(example.ids) for example in encoded.examples]
    assert len(sizes) == len(lengths), f"{len(encoded.too_long)} rows do not fit"
    print(
        f"{name}: {len(sizes)} rows of {min(sizes)} to {max(sizes)} tokens, {sum(sizes) / len(sizes):.0f} on average",
        flush=True,
    )
    rates = best_of(
        {
            "ours": lambda: ours(root, "llama", dataset, sum(sizes)),
            "TRL": lambda: trl(root, encoded, packing=False),
            "TRL packed": lambda: trl(root, encoded, packing=True),
            "transformers": lambda: transformers_trainer(root, "llama", encoded),
        }
    )
    others = {
        "TRL": "TRL's SFTTrainer",
        "TRL packed": "TRL's SFTTrainer, packed",
        "transformers": "transformers' Trainer",
    }
    for (other, title), aim in zip(others.items(), aims, strict=True):
        yield Line(f"fine-tuning, {name}, against {title}", rates["ours"], rates[other], "tokens/s", aim)


def mamba(root: Path) -> Iterator[Line]:
    write_rows(root, "mamba-rows", short_lengths(48))
    encoded = encoded_rows(root, "mamba-rows")
    tokens = sum(len(example.ids) for example in encoded.examples)
    rates = best_of(
        {
            "ours": lambda: ours(root, "mamba", "mamba-rows", tokens),
            "transformers": lambda: transformers_trainer(root, "mamba", encoded),
        }
    )
    yield Line(
        "fine-tuning, Mamba on CPU, against transformers' default path",
        rates["ours"],
        rates["transformers"],
        "tokens/s",
        3.0,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Ingest and evaluation


def ingest(root: Path) -> Iterator[Line]:
    """What one worker does, in this process: the processor time of the stage's own workers cannot be read from here."""
    import pypdfium2

    for copy in range(8):
        shutil.copytree(CORPUS, root / "corpus" / str(copy), ignore=shutil.ignore_patterns("*.md"))
    files = find_pdf_files(root / "corpus")

    def bare() -> float:
        began, pages = time.process_time(), 0
        for file in files:
            pdf = pypdfium2.PdfDocument(file)
            for index in range(len(pdf)):
                text_page = pdf[index].get_textpage()
                text_page.get_text_range()
                text_page.close()
                pages += 1
            pdf.close()
        return pages / (time.process_time() - began)

    def read() -> float:
        began, pages = time.process_time(), 0
        for file in files:
            document = read_document((str(file), file.name))
            assert isinstance(document, Document)
            pages += document.pages
        return pages / (time.process_time() - began)

    def checked() -> float:
        """With the second reader on one page of each document, as by default."""
        began, pages = time.process_time(), 0
        for file in files:
            agreements = cross_check_document(1, (str(file), file.name))
            assert agreements
            document = read_document((str(file), file.name))
            assert isinstance(document, Document)
            pages += document.pages
        return pages / (time.process_time() - began)

    rates = best_of({"ours": read, "pypdfium2": bare, "ours, cross-checked": checked}, INGEST_TURNS)
    print(f"  cross-checked by pypdf: {rates['ours, cross-checked'] / rates['pypdfium2']:.2f} of pypdfium2")
    yield Line(
        "ingest without embedding, against a bare pypdfium2 loop", rates["ours"], rates["pypdfium2"], "pages/s", 0.8
    )


def answers(root: Path) -> Iterator[Line]:
    write_rows(root, "questions", short_lengths(48))
    base = base_model.load(
        job_input(baseModel={"path": "base/llama"}).base_model, root, torch.device("cpu"), torch.float32
    )
    builder = PromptBuilder(base.tokenizer, MAX_LENGTH - MAX_NEW_TOKENS)
    prompts = [builder.prompt(row.question, None) for row in read_rows(root / "datasets/questions", TRAIN_FILE)]

    def batched() -> float:
        began = time.process_time()
        answer(base.model, builder, prompts, max_new_tokens=MAX_NEW_TOKENS)
        return len(prompts) / (time.process_time() - began)

    @torch.inference_mode()
    def one_at_a_time() -> float:
        began = time.process_time()
        for prompt in prompts:
            ids = torch.tensor([prompt.ids])
            base.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_NEW_TOKENS, do_sample=False,
                eos_token_id=builder.stop, pad_token_id=builder.tokenizer.pad_token_id,
            )  # fmt: skip
        return len(prompts) / (time.process_time() - began)

    base.model.eval()
    rates = best_of({"ours": batched, "one at a time": one_at_a_time})
    yield Line(
        "evaluation's answers against one-at-a-time generation", rates["ours"], rates["one at a time"], "items/s", 4.0
    )


PARTS: dict[str, Callable[[Path], Iterator[Line]]] = {
    "fine-tuning": fine_tuning,
    "ingest": ingest,
    "answers": answers,
    "mamba": mamba,
}


def main(words: list[str]) -> int:
    unknown = set(words) - set(PARTS)
    if unknown:
        print(f"no part {', '.join(sorted(unknown))}: {', '.join(PARTS)}", file=sys.stderr)
        return 2
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    lines = ["| what | ours | theirs | ratio | aim | |", "|---|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_models(root)
        for part in words or PARTS:
            found = [line.text for line in PARTS[part](root)]
            print("\n".join(found), flush=True)
            lines += found
    print(f"\ntorch {torch.__version__}, best of {TURNS} turns, of {INGEST_TURNS} for ingest\n\n" + "\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
