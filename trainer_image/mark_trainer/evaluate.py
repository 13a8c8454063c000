"""The stage eval: the tuned model beside its base on held-out documents, without and with passages.

It reads top to bottom: what is measured, rows, prompts, answers and likelihoods, records, report. It uses the prompt
builder of training and refuses a model that was trained with another. It must not change model or dataset.
"""

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch
from mark_crds.job_output import Artifact, Result
from mark_crds.names import REPORTS_FOLDER
from mark_crds.shared import BaseModelReference
from peft import PeftModel

from mark_trainer import base_model, citations, metrics, report, report_page, verdicts
from mark_trainer.answers import Answer, answer
from mark_trainer.base_model import BaseModel
from mark_trainer.citations import Source
from mark_trainer.dataset import TRAIN_FILE, VALIDATION_FILE, Passage, Row, read_rows
from mark_trainer.failures import BadData, Stopped, UserMistake
from mark_trainer.likelihood import IGNORED, UNIGRAM_FILE, Nats, Unigram, label_nats, text_nats
from mark_trainer.model_files import trained_on
from mark_trainer.prompts import TEMPLATE_VERSION, Prompt, PromptBuilder
from mark_trainer.publish import file_digest, provenance_of, verify_folder
from mark_trainer.retrieval import named_documents, oracle, with_passages
from mark_trainer.workspace import Work, write_file, write_json

CLOSED_BOOK, RETRIEVED, ORACLE = "closedBook", "retrieved", "oracle"
BASE, TUNED = "base", "tuned"


@dataclass(frozen=True)
class Adapter:
    """The published adapter that is measured."""

    path: str
    digest: str
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """A row under one condition, as the models are asked it."""

    condition: str
    row: Row
    prompt: Prompt
    passages: tuple[Passage, ...]
    """All that were looked up; the first ones of them are in the prompt."""


def run(work: Work) -> Result:
    """Measure; returns the headline numbers and where report, page and predictions are."""
    started, clock = time.monotonic(), datetime.now(UTC)
    job, settings = work.job_input, work.job_input.evaluation

    # ---- what is measured -------------------------------------------------------------------------------------------
    adapter = adapter_of(work)
    base = load_base(work, adapter)
    limit = int(adapter.provenance["prompt"]["limitTokens"]) if adapter else default_limit(work, base)
    builder = PromptBuilder(base.tokenizer, limit)
    check_template(adapter, builder)
    check_room(base, limit + settings.max_new_tokens)
    model = base.model
    if adapter is not None:
        model = PeftModel.from_pretrained(base.model, work.workspace.path(adapter.path), local_files_only=True)
    model.eval()
    names = [BASE, TUNED] if adapter else [BASE]

    # ---- rows and prompts -------------------------------------------------------------------------------------------
    dataset_folder = work.dataset_folder()
    dataset_digest = verify_folder(dataset_folder, work.workspace.relative(dataset_folder))
    rows = read_rows(dataset_folder, VALIDATION_FILE)[: settings.max_items]
    if settings.rag:
        rows = with_passages(work, rows)
    asked = [item for condition in conditions(settings.rag) for item in ask(rows, builder, condition)]
    closed_book = sum(item.condition == CLOSED_BOOK for item in asked)
    if not closed_book:
        raise UserMistake("NoRowFits", "evaluation: no question fits the prompt; raise lora.maxLength")
    if not any(item.row.answerable for item in asked):
        raise UserMistake(
            "NoAnswers",
            f"evaluation.maxItems: none of the {closed_book} questions has an answer to compare with; raise it",
        )
    documents = named_documents(work, [item.row for item in asked])

    # ---- answers and likelihoods ------------------------------------------------------------------------------------
    total, done = len(names) * len(asked), 0

    def after_batch(count: int) -> None:
        nonlocal done
        done += count
        work.progress.report(done, total)
        if work.stop.is_set():
            raise Stopped(
                "Stopped", "eval was asked to end; it keeps nothing on its way, the next attempt measures anew"
            )

    prompts = [item.prompt for item in asked]
    references = [builder.answer(item.row.answer) for item in asked]
    examples = [
        (prompt.ids + ids, [IGNORED] * len(prompt.ids) + ids) for prompt, ids in zip(prompts, references, strict=True)
    ]
    records: list[dict[str, Any]] = []
    for name in names:
        with speaking_as(model, name):
            answers = answer(model, builder, prompts, max_new_tokens=settings.max_new_tokens, after_batch=after_batch)
            nats = label_nats(model, examples)
        records += [
            record_of(name, item, written, cost, sources_of(item, documents))
            for item, written, cost in zip(asked, answers, nats, strict=True)
        ]
    with speaking_as(model, BASE):
        held_out = held_out_text(work, base, rows, model)

    # ---- report -----------------------------------------------------------------------------------------------------
    summary = report.summarise(records, settings.metrics)
    subject = job.evaluated_model.name if job.evaluated_model else job.output_model or job.name
    document = {
        "formatVersion": report.FORMAT_VERSION,
        "model": subject,
        "time": clock.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "run": {"kind": job.kind, "namespace": job.namespace, "name": job.name, "uid": work.run_uid},
        "base": {**base_reference(work, adapter).to_dict(), "digest": base.digest},
        "adapter": {"path": adapter.path, "digest": adapter.digest} if adapter else None,
        "dataset": {
            "path": work.workspace.relative(dataset_folder),
            "digest": dataset_digest,
            "validationRows": len(rows),
            "leftOut": len(rows) - closed_book,
            "documentsAtHand": len(documents),
        },
        "prompt": {"template": TEMPLATE_VERSION, "digest": builder.digest(), "limitTokens": limit},
        "settings": {
            **settings.to_dict(),
            "topK": job.data_prep.top_k,
            "decoding": "greedy, to the stop token or the end of the first line",
            "rightFromF1": verdicts.RIGHT_FROM_F1,
        },
        "seeds": {"dataPrep": job.data_prep.seed, "lora": job.lora.seed, "evaluation": "none: nothing is drawn"},
        "definitions": report.definitions(),
        "bleuSignature": metrics.bleu_signature(),
        **summary,
        "heldOutText": held_out,
        "versions": {
            name: version(name) for name in ("torch", "transformers", "peft", "rouge-score", "sacrebleu", "scipy")
        },
    }
    paths = write_report(work, report_name(subject, clock, work.run_uid), document, records)
    measures = report.headline(document)
    return work.done(
        "Measured", report.sentence(document), paths, **measures, seconds=round(time.monotonic() - started, 1)
    )


# ---------------------------------------------------------------------------------------------------------------------
# What is measured


def adapter_of(work: Work) -> Adapter | None:
    """The adapter to measure, whole and with the digest it should have; None measures the base model alone."""
    chosen = work.job_input.evaluated_model
    if chosen is not None:
        path, expected = chosen.adapter_path, chosen.adapter_digest
    else:
        newest = work.made("adapter", "ppo", "lora")
        path, expected = (newest.path, newest.digest) if newest else (None, None)
    if path is None:
        return None
    folder = work.workspace.path(path)
    digest = verify_folder(folder, path)
    if expected is not None and digest != expected:
        raise BadData(
            "OtherAdapter", f"{path}: has digest {digest[:12]}, expected {expected[:12]}; name the right folder"
        )
    return Adapter(path, digest, provenance_of(folder, path))


def base_reference(work: Work, adapter: Adapter | None) -> BaseModelReference:
    """The base model that the run names, else the one that the adapter was trained on."""
    if work.job_input.base_model is not None:
        return work.job_input.base_model
    if adapter is None:
        raise UserMistake("NoBaseModel", "baseModel: nothing to measure; name a base model or a tuned one")
    return trained_on(adapter.provenance, adapter.path)


def load_base(work: Work, adapter: Adapter | None) -> BaseModel:
    """The base model; it must be the very one that the adapter was trained on."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    reference = base_reference(work, adapter)
    base = base_model.load(reference, work.workspace.root, device, dtype)
    if adapter is not None and adapter.provenance["base"]["digest"] != base.digest:
        raise BadData(
            "OtherBaseModel",
            f"baseModel: {reference.path or reference.hugging_face_id} is not what {adapter.path} was "
            f"trained on (digest {base.digest[:12]}, expected {adapter.provenance['base']['digest'][:12]}); name that",
        )
    return base


def check_template(adapter: Adapter | None, builder: PromptBuilder) -> None:
    """Refuse a model that was trained behind other prompts than it would be measured with."""
    if adapter is not None and adapter.provenance["prompt"]["digest"] != builder.digest():
        raise BadData(
            "OtherTemplate",
            f"{adapter.path}: was trained with prompt template {adapter.provenance['prompt']['template']} and another "
            f"template or tokenizer than {TEMPLATE_VERSION} here; train it again, or use its trainer image",
        )


def default_limit(work: Work, base: BaseModel) -> int:
    """The prompt limit for a base model alone: what training with these settings would use."""
    context = getattr(base.model.config, "max_position_embeddings", work.job_input.lora.max_length)
    return min(work.job_input.lora.max_length, context) - work.job_input.evaluation.max_new_tokens


def check_room(base: BaseModel, tokens: int) -> None:
    context = getattr(base.model.config, "max_position_embeddings", None)
    if context is not None and tokens > context:
        raise UserMistake(
            "TooLongForModel",
            f"evaluation.maxNewTokens: prompt and answer need {tokens} of the {context} tokens there are; lower it",
        )


@contextlib.contextmanager
def speaking_as(model: Any, name: str) -> Iterator[None]:
    """The model as base or as tuned: the adapter off or on."""
    if name == BASE and isinstance(model, PeftModel):
        with model.disable_adapter():
            yield
    else:
        yield


# ---------------------------------------------------------------------------------------------------------------------
# Rows


def conditions(rag: bool) -> list[str]:
    return [CLOSED_BOOK, RETRIEVED, ORACLE] if rag else [CLOSED_BOOK]


def ask(rows: Sequence[Row], builder: PromptBuilder, condition: str) -> list[Asked]:
    """The rows that can be asked under a condition: the oracle's needs the text of the right chunk."""
    asked = []
    for row in rows:
        passages = row.contexts or () if condition == RETRIEVED else ()
        if condition == ORACLE:
            right = oracle(row)
            if right is None:
                continue
            passages = (right,)
        texts = None if condition == CLOSED_BOOK else [passage.text for passage in passages]
        prompt = builder.prompt(row.question, texts)
        if prompt is not None:
            asked.append(Asked(condition, row, prompt, passages))
    return asked


def sources_of(item: Asked, documents: dict[str, Source]) -> list[Source]:
    """What an answer is looked up in: the passages as the prompt shows them, then the document that the row names."""
    shown = [
        Source(
            text=text,
            document=passage.document or "",
            start=None if passage.span is None else passage.span[0] + leading_spaces(passage.text),
            page=passage.page,
            page_breaks=passage.page_breaks,
            path=passage.path,
            title=passage.title,
            chunk_id=passage.chunk_id,
        )
        for passage, text in zip(item.passages, item.prompt.shown, strict=False)
    ]
    named = documents.get(item.row.document.digest)
    return shown if named is None else [*shown, named]


def record_of(model: str, item: Asked, written: Answer, nats: Nats, sources: list[Source]) -> dict[str, Any]:
    """One line of predictions.jsonl: enough to recompute every number of the report."""
    row, abstained = item.row, verdicts.abstains(written.text)
    record = {
        "item": row.id,
        "model": model,
        "condition": item.condition,
        "question": row.question,
        "answerable": row.answerable,
        "reference": row.answer,
        "prediction": written.text,
        "abstained": abstained,
        "stopped": written.stopped,
        "scores": metrics.scores(written.text, row.answer, answerable=row.answerable, abstained=abstained),
        "nats": nats[0],
        "answerTokens": nats[1],
        "promptTokens": len(item.prompt.ids),
        "passages": [place_of(passage, item.prompt, number) for number, passage in enumerate(item.passages)],
        "passagesCut": item.prompt.cut,
        "citations": citations.check(written.text, sources, nothing_said=abstained),
        "document": row.document.model_dump(by_alias=True),
        "page": row.page,
        "span": row.span,
        "chunkId": row.chunk_id,
    }
    return record | {"outcome": None if item.condition == CLOSED_BOOK else verdicts.outcome(record)}


def place_of(passage: Passage, prompt: Prompt, number: int) -> dict[str, Any]:
    """Where a passage stands, and how many of its characters, from the first one, are in the prompt."""
    shown = prompt.shown[number] if number < len(prompt.shown) else ""
    characters = leading_spaces(passage.text) + len(shown) if shown else 0
    return {**passage.to_place(), "shownCharacters": characters}


def leading_spaces(text: str) -> int:
    return len(text) - len(text.lstrip())


def held_out_text(work: Work, base: BaseModel, rows: Sequence[Row], model: Any) -> dict[str, Any] | None:
    """The base model against a unigram, on the held-out passages that the rows were made from."""
    found = [(row, passage) for row in rows if (passage := oracle(row)) is not None]
    texts = {passage.chunk_id: (row.document.cluster, passage.text) for row, passage in found}
    if not texts:
        return None
    encode = base.tokenizer.encode
    ids = [encode(text, add_special_tokens=False) for _, text in texts.values()]
    path = base.folder / UNIGRAM_FILE
    if path.is_file():
        unigram, fitted = Unigram.read(path), "the base model's own training text"
    else:
        training = read_rows(work.dataset_folder(), TRAIN_FILE)
        passages = [passage for row in training if (passage := oracle(row)) is not None]
        chunks = {passage.chunk_id: passage.text for passage in passages}
        documents = [encode(text, add_special_tokens=False) for text in chunks.values()]
        unigram, fitted = Unigram.fit(documents, len(base.tokenizer)), "the passages of the training rows"
    pieces = [
        {"chunkId": chunk, "cluster": cluster, "tokens": tokens, "nats": nats, "unigramNats": unigram_nats}
        for (chunk, (cluster, _)), (nats, tokens), (unigram_nats, _) in zip(
            texts.items(), text_nats(model, ids, base.tokenizer.bos_token_id), unigram.nats(ids), strict=True
        )
    ]
    return {"unigramFittedOn": fitted, "smoothing": "add-one", **report.against_unigram(pieces), "pieces": pieces}


# ---------------------------------------------------------------------------------------------------------------------
# Files


def report_name(subject: str, clock: datetime, run_uid: str) -> str:
    """What the files of a report are called: two runs may measure one model in the same second."""
    return f"eval_{subject}_{clock.strftime('%Y%m%dT%H%M%SZ')}_{run_uid[-8:]}"


def write_report(
    work: Work, name: str, document: dict[str, Any], records: list[dict[str, Any]]
) -> tuple[Artifact, ...]:
    """Predictions first, then the report with their digest, then the page."""
    folder = work.workspace.path(REPORTS_FOLDER)
    folder.mkdir(exist_ok=True)
    predictions, numbers, page = (folder / f"{name}{end}" for end in (".predictions.jsonl", ".json", ".html"))
    write_file(predictions, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    document["predictions"] = {"path": work.workspace.relative(predictions), "digest": file_digest(predictions)}
    write_json(numbers, document)
    write_file(page, report_page.page(document, records))
    return tuple(
        Artifact(kind=kind, path=work.workspace.relative(path), digest=file_digest(path))
        for kind, path in (("report", numbers), ("page", page), ("predictions", predictions))
    )
