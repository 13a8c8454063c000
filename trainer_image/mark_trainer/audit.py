"""Refuses, in seconds, a training that could not work: before the first step, with one sentence that says why.

It must not change the model, the examples or the random numbers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from mark_trainer.dataset import Example, Row
from mark_trainer.failures import BadData, MachineTrouble, UserMistake
from mark_trainer.likelihood import IGNORED
from mark_trainer.passes import collate
from mark_trainer.prompts import PromptBuilder


@dataclass(frozen=True)
class Findings:
    """What the audit counted, for the adapter's manifest."""

    examples: int
    tokens: int
    trained_tokens: int
    prompt_mismatches: int
    shared_clusters: int
    live_modules: tuple[str, ...] = ()

    @property
    def trained_share(self) -> float:
        return self.trained_tokens / max(1, self.tokens)


def audit_examples(
    examples: Sequence[Example], training: Sequence[Row], validation: Sequence[Row], builder: PromptBuilder
) -> Findings:
    """Checks masks, stop tokens, prompts and the split; raises with the first thing that is wrong."""
    if not examples:
        raise UserMistake(
            "NoRowFits", "lora.maxLength: no row fits; raise it, or lower dataPrep.topK or ingest.chunkCharacters"
        )
    mismatches = 0
    for example in examples:
        check_mask(example, builder.stop)
        mismatches += not same_prompt(example, builder)
    if mismatches:
        raise BadData(
            "PromptMismatch",
            f"{mismatches} of {len(examples)} training prompts differ from the prompts that evaluation would build; "
            "the tokenizer of baseModel does not encode the same text to the same ids twice",
        )
    refuse_shared_documents(training, validation)
    return Findings(
        examples=len(examples),
        tokens=sum(len(example.ids) for example in examples),
        trained_tokens=sum(label != IGNORED for example in examples for label in example.labels),
        prompt_mismatches=mismatches,
        shared_clusters=0,
    )


def check_mask(example: Example, stop: int) -> None:
    """The prompt carries no loss, every token of the answer does, and the last of them is the stop token."""
    name = f"row {example.row.id}"
    answer = example.ids[example.prompt_tokens :]
    if len(example.ids) != len(example.labels):
        raise BadData("MaskWrong", f"{name}: {len(example.ids)} token ids and {len(example.labels)} labels")
    if any(label != IGNORED for label in example.labels[: example.prompt_tokens]):
        raise BadData("PromptTrained", f"{name}: a token of the prompt carries loss")
    if example.labels[example.prompt_tokens :] != answer:
        raise BadData("MaskWrong", f"{name}: the labels of the answer are not its token ids")
    if not answer or answer[-1] != stop:
        raise BadData("StopNotTrained", f"{name}: the stop token is not trained, so the model would not learn to end")
    if not example.row.answer.strip():
        raise BadData("EmptyAnswer", f"{name}: the answer is empty; remove the row")


def same_prompt(example: Example, builder: PromptBuilder) -> bool:
    """Whether evaluation would give the model the very tokens that it was trained behind."""
    passages = [passage.text for passage in example.row.contexts or ()] if example.form == "retrieved" else None
    prompt = builder.prompt(example.row.question, passages)
    return prompt is not None and prompt.ids == example.ids[: example.prompt_tokens]


def refuse_shared_documents(training: Sequence[Row], validation: Sequence[Row]) -> None:
    """What is learned from and what is measured must come from different documents."""
    shared = shared_documents(training, validation)
    if shared:
        raise BadData(
            "SplitOverlap",
            f"{len(shared)} documents stand in both training and validation rows, the first is {shared[0]}; "
            "make the dataset again, it must be split by cluster of documents",
        )


def shared_documents(training: Sequence[Row], validation: Sequence[Row]) -> list[str]:
    """Digests and clusters that stand on both sides of the split."""
    sides = [
        {mark for row in rows for mark in (row.document.digest, f"cluster {row.document.cluster}")}
        for rows in (training, validation)
    ]
    return sorted(sides[0] & sides[1])


def audit_packing(model: PreTrainedModel, examples: Sequence[Example]) -> None:
    """Whether a row reads the same alone and behind a neighbour, and whichever neighbour that is.

    Two short rows share a pass; then a token of the first one is another. Refuses a model whose rows see each other.
    """
    first, second = sorted(examples, key=lambda example: len(example.ids))[:2] if len(examples) > 1 else examples * 2
    other = replace(first, ids=[*first.ids[:-1], first.ids[0]])
    alone, behind, behind_other = (
        row_logits(model, rows)[-len(second.ids) :] for rows in ([second], [first, second], [other, second])
    )
    # Packed and alone round differently; a row that is seen moves the logits by a tenth of their spread and more.
    slack = (1e-3 if alone.dtype == torch.float32 else 5e-2) * float(alone.float().std())
    moved = max(float((alone - behind).abs().max()), float((behind - behind_other).abs().max()))
    if moved > slack:
        raise UserMistake(
            "RowsSeeEachOther",
            f"lora.packing: rows that share a forward pass move each other's logits by {moved:.2g} in this base model; "
            "set lora.packing: false",
        )


@torch.no_grad()
def row_logits(model: PreTrainedModel, rows: Sequence[Example]) -> torch.Tensor:
    """Logits of a packed pass over the rows, (tokens, vocabulary), without dropout."""
    was_training = model.training
    model.eval()
    inputs = collate(rows, 0, packed=True)
    device = next(model.parameters()).device
    logits = model(
        input_ids=inputs["input_ids"].to(device),
        position_ids=inputs["position_ids"].to(device),
        row_lengths=inputs["row_lengths"],
        use_cache=False,
    ).logits[0]
    model.train(was_training)
    return torch.as_tensor(logits)


def audit_adapter(model: PreTrainedModel, example: Example, *, packed: bool) -> tuple[str, ...]:
    """The adapted modules, after one backward pass of the example's loss has shown that a gradient reaches each."""

    def loss() -> torch.Tensor:
        device = next(model.parameters()).device
        inputs = collate([example], 0, packed=packed)
        on_device = {name: value.to(device) if torch.is_tensor(value) else value for name, value in inputs.items()}
        return torch.as_tensor(model(**on_device).loss)

    return live_modules(model, loss, f"row {example.row.id}")


def live_modules(model: PreTrainedModel, loss_of: Callable[[], torch.Tensor], name: str) -> tuple[str, ...]:
    """The adapted modules, after one backward pass has shown that a gradient reaches each of them; `name` says whose
    loss it is.

    B starts at zero, so at the first step only B's gradient can differ from zero; A's must exist.
    Some modules read their weight without calling the layer (Mamba's dt_proj): an adapter there is dead.
    """
    was_training = model.training
    model.eval()  # without dropout no random number is drawn
    try:
        loss = loss_of()
        if not torch.isfinite(loss):
            raise MachineTrouble(
                "LossNotFinite", f"{name}: the first loss is {loss.item()}; check the weights of baseModel"
            )
        loss.backward()
        live, dead = [], []
        for path, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            reached = parameter.grad is not None and (".lora_B." not in path or bool(parameter.grad.abs().sum() > 0))
            (live if reached else dead).append(path)
    finally:
        model.zero_grad(set_to_none=True)
        model.train(was_training)
    if dead or not live:
        raise UserMistake(
            "DeadAdapter",
            f"no gradient reaches {len(dead)} tensors of the adapter, the first is {(dead or ['none'])[0]}: "
            "this model family needs other target modules",
        )
    return tuple(sorted({path.split(".lora_")[0] for path in live}))
