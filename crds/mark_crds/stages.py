"""The settings of each stage, shared by the TrainingRun's spec and the Job's input. It must hold no rule that looks beyond one stage."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from mark_crds.model import Model, Rule
from mark_crds.shared import Chroma, DecimalText, MetricName, Name, ObjectName, WorkspacePath

ALL_METRICS: tuple[MetricName, ...] = ("exactMatch", "f1", "rougeL", "bleu")
CollectionName = Annotated[
    str, StringConstraints(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]{1,61}[a-zA-Z0-9]$", max_length=63)
]
Seed = Annotated[int, Field(ge=0, le=2147483647)]


class Ingest(Model):
    """PDF files into a ChromaDB collection. The collection is `dataPrep.collection`."""

    path: WorkspacePath = "corpus"
    """Folder of the workspace with the PDF files; folders below it are read too."""
    chunk_characters: Annotated[int, Field(ge=200, le=8000)] = 800
    """Length of a chunk, in characters, at most."""
    chunk_overlap_characters: Annotated[int, Field(ge=0, le=2000)] = 100
    """Characters that neighbouring chunks of a document share."""
    on_bad_file: Literal["Quarantine", "Fail"] = "Quarantine"
    """What becomes of a file that is no PDF, is encrypted, broken, too large, or leads out of the workspace: Quarantine leaves it out, counts it in the stage's measures and says why in `runs/<uid>/ingest_report.json`; Fail ends the run with its name. Without any usable file the run fails either way."""
    cross_check_pages: Annotated[int, Field(ge=0, le=1000)] = 1
    """Pages of each new document that a second reader reads too, to report where the two disagree. 0 checks none; each costs about as much as reading ten."""

    rules = (
        Rule(
            cel="self.chunkOverlapCharacters * 2 <= self.chunkCharacters",
            message="ingest.chunkOverlapCharacters: must be at most half of chunkCharacters; lower it",
            check=lambda m: m.chunk_overlap_characters * 2 <= m.chunk_characters,
        ),
    )


class DataPrep(Model):
    """Question-answer data from a ChromaDB collection, split by cluster of near-duplicate documents."""

    collection: CollectionName = "pdf_docs"
    """The ChromaDB collection that ingest fills, and that questions and retrieved passages come from."""
    chroma: Chroma = Chroma()
    """Where the collection lives."""
    top_k: Annotated[int, Field(ge=1, le=20)] = 3
    """Passages retrieved for a question, in training rows and in evaluation."""
    max_samples: Annotated[int, Field(ge=1, le=1000000)] = 1000
    """Question-answer rows at most, training and validation together."""
    validation_fraction: DecimalText = "0.2"
    """Share of the document clusters that is held out, as text such as `"0.2"`; more than 0 and less than 1."""
    seed: Seed = 7
    """Seed of the split and of every choice; the same seed and documents give the same bytes."""
    round_trip_filter: Literal["Train", "All", "Off"] = "Train"
    """Which rows must find their own passage among the `topK` when their question is searched for. Train leaves validation rows as they are, since with All the evaluation's retrieval would find everything by construction."""
    hard_negatives: Annotated[int, Field(ge=0, le=20)] = 0
    """Passages that a training row shows beyond `topK`: the next nearest to its question that do not hold its answer."""
    unanswerable_fraction: DecimalText = "0"
    """Share of the rows whose document does not answer their question, as text such as `"0.1"`; at most 0.5. Their answer is one fixed sentence that says so."""

    rules = (
        Rule(
            cel="double(self.validationFraction) > 0.0 && double(self.validationFraction) < 1.0",
            message='dataPrep.validationFraction: must be more than 0 and less than 1, such as "0.2"',
            check=lambda m: 0 < float(m.validation_fraction) < 1,
        ),
        Rule(
            cel="double(self.unanswerableFraction) <= 0.5",
            message='dataPrep.unanswerableFraction: must be at most 0.5, such as "0.1"',
            check=lambda m: float(m.unanswerable_fraction) <= 0.5,
        ),
    )


class Lora(Model):
    """Low-rank fine-tuning of the base model on the run's dataset."""

    epochs: Annotated[int, Field(ge=0, le=1000)] = 0
    """Passes over the training rows. 0, the default, trains nothing; a confirmed run needs at least 1."""
    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank of the adapter matrices."""
    alpha: Annotated[int, Field(ge=1, le=4096)] = 32
    """Scale of the adapter: its output is multiplied by alpha / rank."""
    dropout: DecimalText = "0.05"
    """Dropout in front of the adapter, as text such as `"0.05"`; at least 0 and less than 1."""
    learning_rate: DecimalText = "0.0002"
    """Peak learning rate, as text such as `"2e-4"`: write it in quotes, a bare number is refused."""
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 4
    """Rows of one forward pass on one device."""
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=4096)] = 4
    """Forward passes of one optimizer step at most. Lower batchSize and raise this when memory runs out."""
    max_length: Annotated[int, Field(ge=64, le=131072)] = 1024
    """Longest row, in tokens; longer rows are left out and counted."""
    packing: bool = True
    """Whether the rows of a step share forward passes without padding, each apart from the others; it changes no result. Mamba, whose state would leak, goes by batches of like length instead."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Numbers of the base model: auto takes bfloat16 on a GPU that computes with it, else float32. The adapter's weights are always float32."""
    gradient_checkpointing: bool = False
    """Whether activations are computed twice instead of kept: less memory, about a fifth slower, the same result."""
    seed: Seed = 7
    """Seed of the initial adapter and of the order of rows."""

    rules = (
        Rule(
            cel="double(self.dropout) < 1.0",
            message='lora.dropout: must be less than 1, such as "0.05"',
            check=lambda m: float(m.dropout) < 1,
        ),
        Rule(
            cel="double(self.learningRate) > 0.0 && double(self.learningRate) <= 1.0",
            message='lora.learningRate: must be more than 0 and at most 1, such as "2e-4"',
            check=lambda m: 0 < float(m.learning_rate) <= 1,
        ),
    )


class Preferences(Model):
    """People's judgements of answers."""

    path: WorkspacePath
    """A JSONL file of the workspace, one judgement a line: `question`, `chosen`, `rejected`, and optionally `passages` (texts shown with the question) and `document` (name or digest; judgements of one document are trained on together or held out together)."""


class Reward(Model):
    """The reward model: which of two answers is the better one, learned from pairs. It runs as one process, on one node and at most one GPU; `lora.maxLength`, `lora.precision` and `lora.gradientCheckpointing` hold for it too."""

    epochs: Annotated[int, Field(ge=0, le=1000)] = 0
    """Passes over the preference pairs. 0, the default, trains nothing; a confirmed run needs at least 1."""
    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank of the adapter matrices that are trained. Where lora is a stage of the run, its adapter stays below them unchanged, and what is published is both as one."""
    alpha: Annotated[int, Field(ge=1, le=4096)] = 32
    """Scale of the adapter: its output is multiplied by alpha / rank."""
    dropout: DecimalText = "0.05"
    """Dropout in front of the adapter, as text such as `"0.05"`; at least 0 and less than 1."""
    learning_rate: DecimalText = "0.0001"
    """Peak learning rate of adapter and head, as text such as `"1e-4"`: write it in quotes, a bare number is refused."""
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 4
    """Pairs of one forward pass; a pair is two rows."""
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=4096)] = 1
    """Forward passes of one optimizer step. Lower batchSize and raise this when memory runs out."""
    seed: Seed = 7
    """Seed of the initial adapter and head, of the order of pairs, of the rejected answers that rules choose, and of which of people's documents are held out."""

    rules = (
        Rule(
            cel="double(self.dropout) < 1.0",
            message='rlhf.reward.dropout: must be less than 1, such as "0.05"',
            check=lambda m: float(m.dropout) < 1,
        ),
        Rule(
            cel="double(self.learningRate) > 0.0 && double(self.learningRate) <= 1.0",
            message='rlhf.reward.learningRate: must be more than 0 and at most 1, such as "1e-4"',
            check=lambda m: 0 < float(m.learning_rate) <= 1,
        ),
    )


class Ppo(Model):
    """Policy optimisation: the model answers the training rows' questions, the reward model scores what it wrote, and its adapter moves towards higher scores. It runs as one process, on one node and at most one GPU; an answer has at most `evaluation.maxNewTokens` tokens, and `lora.maxLength` and `lora.precision` hold for it too."""

    steps: Annotated[int, Field(ge=0, le=1000000)] = 0
    """Optimisation steps. 0, the default, trains nothing; a confirmed run needs at least 1."""
    rollouts_per_step: Annotated[int, Field(ge=1, le=65536)] = 32
    """Answers that each step writes and learns from."""
    epochs_per_step: Annotated[int, Field(ge=1, le=100)] = 4
    """Passes over the answers of a step."""
    minibatch_size: Annotated[int, Field(ge=1, le=65536)] = 8
    """Answers of one optimizer update; it must divide rolloutsPerStep. It costs no memory: a forward pass holds as many tokens as `lora.batchSize` rows of `lora.maxLength`."""
    learning_rate: DecimalText = "0.00001"
    """Learning rate of policy and critic in the first step, as text such as `"1e-5"`: write it in quotes, a bare number is refused. It falls linearly to zero."""
    kl_coefficient: DecimalText = "0.05"
    """Price of a nat by which a token's probability departs from that of the model before this stage, in units of the score. 0 asks no price."""
    clip_range: DecimalText = "0.2"
    """How far the probability of a token may move in a step before it is no longer pulled, as a share of what it was."""
    value_clip_range: DecimalText = "0.2"
    """How far the critic's value of a token may move in a step before it is no longer pulled, in units of the score."""
    value_coefficient: DecimalText = "0.1"
    """Weight of the critic's loss beside the policy's."""
    discount: DecimalText = "1"
    """What a reward is worth one token earlier."""
    gae_lambda: DecimalText = "0.95"
    """How far advantages look ahead: 0 to the next token, 1 to the end of the answer."""
    temperature: DecimalText = "0.7"
    """Temperature that answers are drawn at."""
    missing_stop_penalty: DecimalText = "1"
    """What is taken off the score of an answer that did not end by itself."""
    seed: Seed = 7
    """Seed of the order of questions and of the answers that are drawn."""

    rules = (
        Rule(
            cel="self.rolloutsPerStep % self.minibatchSize == 0",
            message="rlhf.ppo.minibatchSize: must divide rolloutsPerStep; set both to powers of two, such as 8 and 32",
            check=lambda m: m.rollouts_per_step % m.minibatch_size == 0,
        ),
        Rule(
            cel="double(self.learningRate) > 0.0 && double(self.learningRate) <= 1.0",
            message='rlhf.ppo.learningRate: must be more than 0 and at most 1, such as "1e-5"',
            check=lambda m: 0 < float(m.learning_rate) <= 1,
        ),
        Rule(
            cel="double(self.klCoefficient) <= 100.0",
            message='rlhf.ppo.klCoefficient: must be at most 100, such as "0.05"',
            check=lambda m: float(m.kl_coefficient) <= 100,
        ),
        Rule(
            cel="double(self.clipRange) > 0.0 && double(self.clipRange) < 1.0",
            message='rlhf.ppo.clipRange: must be more than 0 and less than 1, such as "0.2"',
            check=lambda m: 0 < float(m.clip_range) < 1,
        ),
        Rule(
            cel="double(self.valueClipRange) > 0.0 && double(self.valueClipRange) <= 100.0",
            message='rlhf.ppo.valueClipRange: must be more than 0 and at most 100, such as "0.2"',
            check=lambda m: 0 < float(m.value_clip_range) <= 100,
        ),
        Rule(
            cel="double(self.valueCoefficient) > 0.0 && double(self.valueCoefficient) <= 100.0",
            message='rlhf.ppo.valueCoefficient: must be more than 0 and at most 100, such as "0.1"',
            check=lambda m: 0 < float(m.value_coefficient) <= 100,
        ),
        Rule(
            cel="double(self.discount) > 0.0 && double(self.discount) <= 1.0",
            message='rlhf.ppo.discount: must be more than 0 and at most 1, such as "1"',
            check=lambda m: 0 < float(m.discount) <= 1,
        ),
        Rule(
            cel="double(self.gaeLambda) <= 1.0",
            message='rlhf.ppo.gaeLambda: must be at most 1, such as "0.95"',
            check=lambda m: float(m.gae_lambda) <= 1,
        ),
        Rule(
            cel="double(self.temperature) > 0.0 && double(self.temperature) <= 10.0",
            message='rlhf.ppo.temperature: must be more than 0 and at most 10, such as "0.7"',
            check=lambda m: 0 < float(m.temperature) <= 10,
        ),
        Rule(
            cel="double(self.missingStopPenalty) <= 1000.0",
            message='rlhf.ppo.missingStopPenalty: must be at most 1000, such as "1"',
            check=lambda m: float(m.missing_stop_penalty) <= 1000,
        ),
    )


class Rlhf(Model):
    """Reinforcement learning from human feedback. Off unless switched on here and listed in `stages`."""

    enabled: bool = False
    """Whether the stages reward and ppo may be listed in a confirmed run."""
    preferences: Preferences | None = None
    """What people judged. Absent makes pairs from the dataset by rules: its reference answer beside an answer that is wrong by construction. Such pairs are no human feedback, and the reward model's manifest and measures say which source it was."""
    reward: Reward = Reward()
    """Settings of the stage reward."""
    ppo: Ppo = Ppo()
    """Settings of the stage ppo."""


class Evaluation(Model):
    """How the tuned model is measured beside its base, on held-out documents."""

    metrics: Annotated[tuple[MetricName, ...], Field(min_length=1, max_length=4)] = ALL_METRICS
    """Metrics of the report: exactMatch and f1 by the SQuAD v2 rules, rougeL, bleu."""
    rag: bool = True
    """Whether answers are also measured with retrieved passages."""
    max_items: Annotated[int, Field(ge=1, le=100000)] = 200
    """Validation rows that are answered at most; the first ones of the file, which is shuffled by document."""
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 64
    """Tokens of an answer at most."""


class Distributed(Model):
    """How the processes of a training stage work together: one a GPU, or one a node without GPUs. With one process nothing is shared."""

    strategy: Literal["ddp", "deepspeedZero2", "deepspeedZero3"] = "ddp"
    """ddp keeps the whole model in each process; deepspeedZero2 shares gradients and optimizer state out, deepspeedZero3 the base model too."""


class WeightsAndBiases(Model):
    """Weights & Biases, beside the TensorBoard events and metrics.jsonl that are always written."""

    mode: Literal["off", "offline", "online"] = "off"
    """offline writes below `runs/<uid>/logs/wandb`, for `wandb sync` later; online sends while it trains, so the cluster must reach the service."""
    project: Name = "mark"
    """Project that the run appears in."""
    secret_name: ObjectName | None = None
    """Secret of the run's namespace whose key `WANDB_API_KEY` holds the API key; online mode needs it. The operator never reads it."""

    rules = (
        Rule(
            cel="self.mode != 'online' || has(self.secretName)",
            message="tracking.wandb.secretName: online mode needs the Secret that holds WANDB_API_KEY; set it, or choose mode offline",
            check=lambda m: m.mode != "online" or m.secret_name is not None,
        ),
    )


class Tracking(Model):
    """Where training measures go, beside the logs in the workspace."""

    wandb: WeightsAndBiases = WeightsAndBiases()
    """Weights & Biases; off unless asked for."""
