"""Where the measures of training go: metrics.jsonl and TensorBoard always, Weights & Biases when asked, and progress.

It must not change the training. Every line and name says which stage it is of. What lora's measures mean:

    loss                nats a trained token, mean over the step
    gradNorm            of the adapter's gradient, before it is clipped
    tokensPerSecond     tokens of rows, without padding, over all processes, since this attempt began
    paddingShare        places of this step's forward passes that hold no token
    memoryGiB           most that this process has held so far: on the GPU, else resident
    modelTeraflops      4 * parameters of the base * tokensPerSecond / 10^12, per process
    mfu                 modelTeraflops by the device's dense peak; only for devices whose peak is known

A frozen weight takes part in the forward pass and in the gradient of its input, two operations a token each: 4, not the
6 of full tuning. Attention, adapter, head, padding and anything computed twice are not counted.
"""

import json
import os
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mark_crds.model import Model
from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl.trainer.utils import get_peak_flops

from mark_trainer.failures import MachineTrouble, UserMistake
from mark_trainer.workspace import Work, write_file

FLOPS_A_TOKEN_AND_WEIGHT = 4
METRICS_FILE = "metrics.jsonl"


class Logs:
    """The logs of a run, as one stage writes them.

    `done` steps are in the checkpoint that this attempt goes on from; what a killed one logged beyond it is dropped.
    """

    def __init__(self, work: Work, *, done: int) -> None:
        self._work = work
        logs = work.run_folder / "logs"
        logs.mkdir(exist_ok=True)
        drop_behind(logs / METRICS_FILE, work.stage, done)
        self._file = (logs / METRICS_FILE).open("a", encoding="utf-8")
        self._board = SummaryWriter(str(logs / "tensorboard" / work.stage), purge_step=done + 1)
        self._wandb = start_wandb(work, logs)

    def keep(self, step: int, measures: Mapping[str, float]) -> None:
        """Writes measures of a step to every log."""
        stage, attempt = self._work.stage, self._work.attempt
        line = json.dumps({"stage": stage, "step": step, "attempt": attempt, **measures}, allow_nan=False)
        self._file.write(line + "\n")
        self._file.flush()
        for name, value in measures.items():
            self._board.add_scalar(f"{stage}/{name}", value, step)
        if self._wandb is not None:
            self._wandb.log({f"{stage}/{name}": value for name, value in measures.items()}, step=step)

    def close(self) -> None:
        self._file.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def drop_behind(file: Path, stage: str, done: int) -> None:
    """Drops the stage's lines about steps beyond `done`, and a line that was cut off as it was written."""
    if file.exists():
        lines = file.read_text(encoding="utf-8").split("\n")
        write_file(file, "".join(line + "\n" for line in lines if _stays(line, stage, done)))


def _stays(line: str, stage: str, done: int) -> bool:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        return False
    return entry.get("stage") != stage or entry["step"] <= done


class Reporter(TrainerCallback):
    """Writes every step to the logs and tells the progress."""

    def __init__(
        self,
        work: Work,
        slots: list[tuple[int, int]],
        parameters: int,
        device: torch.device,
        processes: int,
        done: int = 0,
    ) -> None:
        self.work = work
        self.slots = slots
        self.flops_a_token = FLOPS_A_TOKEN_AND_WEIGHT * parameters / processes
        self.device = device
        self.peak = peak_teraflops(device)
        self.epochs = work.job_input.lora.epochs
        self.tokens_per_second = 0.0
        self.logs = Logs(work, done=done)
        self._begun = (time.monotonic(), done)  # time and step at which this attempt began

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._begun = (time.monotonic(), state.global_step)
        self.work.progress.report(state.global_step, state.max_steps)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        time_begun, step_begun = self._begun
        done = sum(tokens for tokens, _ in self.slots[step_begun : state.global_step])
        self.tokens_per_second = done / max(1e-9, time.monotonic() - time_begun)
        tokens, places = self.slots[state.global_step - 1]
        teraflops = self.flops_a_token * self.tokens_per_second / 1e12
        progress = {
            "epoch": self.epochs * state.global_step / state.max_steps,
            "loss": float(logs["loss"]),
            "learningRate": float(logs["learning_rate"]),
            "gradNorm": float(logs["grad_norm"]),
            "tokensPerSecond": self.tokens_per_second,
        }
        machine = {
            "paddingShare": 1 - tokens / places,
            "memoryGiB": memory_gib(self.device),
            "modelTeraflops": teraflops,
            **({"mfu": teraflops / self.peak} if self.peak else {}),
        }
        self.logs.keep(state.global_step, progress | machine)
        self.work.progress.report(state.global_step, state.max_steps, **progress)


def memory_gib(device: torch.device) -> float:
    """The most memory that this process has held: allocated on its GPU, or resident without one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


def peak_teraflops(device: torch.device) -> float | None:
    """The dense bfloat16 peak of the device in 10^12 operations a second; None for a CPU and for unknown GPUs."""
    peak = get_peak_flops(torch.cuda.get_device_name(device), "bfloat16") if device.type == "cuda" else None
    return peak / 1e12 if peak else None


def settings_of(work: Work) -> Model:
    """The settings of the stage that speaks."""
    job = work.job_input
    return {"lora": job.lora, "reward": job.rlhf.reward, "ppo": job.rlhf.ppo}[work.stage]


def start_wandb(work: Work, logs: Path) -> Any:
    """The run at Weights & Biases, or None when the spec asks for none."""
    settings = work.job_input.tracking.wandb
    if settings.mode == "off":
        return None
    # The service is told measures and settings, nothing of the machine, the code or what is printed.
    os.environ.update({"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"})
    import wandb

    try:
        return wandb.init(
            project=settings.project,
            name=f"{work.job_input.name}-{work.stage}",
            id=f"{work.run_uid}-{work.stage}",  # each stage counts its steps from 1
            group=work.job_input.name,
            resume="allow" if settings.mode == "online" else None,
            mode=settings.mode,
            dir=logs,
            config={"namespace": work.job_input.namespace, work.stage: settings_of(work).to_dict()},
            settings=wandb.Settings(
                console="off", save_code=False, disable_git=True, disable_code=True, x_disable_stats=True
            ),
        )
    except wandb.errors.UsageError as error:
        raise UserMistake("TrackerRefused", f"tracking.wandb: {error}; correct secretName or project") from error
    except wandb.errors.CommError as error:
        raise MachineTrouble(
            "TrackerUnreachable",
            f"tracking.wandb: the service was not reached ({error}); choose mode offline where there is no network",
        ) from error
