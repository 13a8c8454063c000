"""The command `mark-trainer`: checks the job's input, runs one stage, and leaves a Result and an exit code.

It must import nothing heavy before the input is known to be good.
"""

import argparse
import importlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mark_crds import names
from mark_crds.job_input import FORMAT_VERSION, JobInput
from mark_crds.job_output import ExitCode, Result
from pydantic import ValidationError

from mark_trainer import ranks
from mark_trainer.cores import usable_cores
from mark_trainer.failures import BadData, Failure, UserMistake, failure_of
from mark_trainer.locks import STALE_CLAIM_SECONDS, Lock, hold
from mark_trainer.model_files import base_of
from mark_trainer.outcome import adopt_own_result, check_earlier, checked, keep_result, termination_message
from mark_trainer.progress import SERVER_URL, Progress
from mark_trainer.ranks import Rank
from mark_trainer.workspace import Work, Workspace

CLAIM_WAIT_SECONDS = 600.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage; returns the exit code that tells the operator how it ended."""
    # No library may call home, and a compute library may not take every core of a shared machine by itself.
    os.environ.update({"HF_HUB_DISABLE_TELEMETRY": "1", "ANONYMIZED_TELEMETRY": "False", "DO_NOT_TRACK": "1"})
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))
    # Threads that wait in a busy loop take the cores that others compute on: five times slower on a shared machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    options = _parser().parse_args(arguments)
    if options.command == "build-base-model":
        return build_base_model(options)
    try:
        job_input = read_job_input(options.input)
        waited = ranks.start(job_input, options.stage, ranks.command_again(arguments))
        if waited is not None:  # the first of the processes has left the Result
            return waited
        result, code = run_stage(options, job_input), ExitCode.DONE
    except BaseException as error:  # noqa: BLE001 - whatever ends a stage must reach the operator as a Result
        failure = failure_of(error)
        if not isinstance(error, Failure):
            traceback.print_exc()
        result, code = _failed(options.stage, failure), failure.exit_code
    if Rank.here().local_index == 0:
        _leave(result, options.termination_message)
    return int(code)


def run_stage(options: argparse.Namespace, job_input: JobInput) -> Result:
    """Do the stage, unless this run did it already."""
    workspace = Workspace(options.workspace)
    base = base_of(job_input, workspace) if options.stage != "preflight" else None  # which downloads nothing
    os.environ["HF_HUB_OFFLINE"] = "0" if base is not None and base.hugging_face_id is not None else "1"
    module = _stage_module(options.stage, job_input)
    progress = Progress.from_environment(options.stage)
    # transformers' own callback would post too, without steps, and would call an interrupted training 100 percent.
    os.environ.pop(SERVER_URL, None)
    work = Work(
        job_input=job_input,
        workspace=workspace,
        run_uid=options.run_uid,
        attempt=options.attempt,
        stage=options.stage,
        progress=progress,
        stop=_stop_on_signal(),
    )
    try:
        if not Rank.here().first:  # the first process holds the claim and writes what all of them did
            return adopt_own_result(work) or importlib.import_module(module).run(work)
        with _claim(work) as claim:
            check_earlier(work)
            result = adopt_own_result(work) or checked(work, importlib.import_module(module).run(work))
            keep_result(work, result)
            if work.stage != work.job_input.stages[-1] and result.outcome != "Adopted":
                claim.keep()
            return result
    finally:
        progress.close()


def build_base_model(options: argparse.Namespace) -> int:
    """Build a small base model from texts, for the demo and for tests."""
    from mark_trainer import base_model

    try:
        base_model.build(options.texts, options.out, family=options.family, seed=options.seed, steps=options.steps)
    except Failure as failure:
        print(failure.message, file=sys.stderr)
        return int(failure.exit_code)
    return int(ExitCode.DONE)


def read_job_input(path: Path) -> JobInput:
    """The job's input, or a UserMistake that names the field."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserMistake("NoJobInput", f"--input: there is no file {path}") from error
    except ValueError as error:
        raise UserMistake("InvalidJobInput", f"--input: {path} is no JSON ({error})") from error
    version = value.get("formatVersion") if isinstance(value, dict) else None
    if version != FORMAT_VERSION:
        raise UserMistake(
            "UnknownFormatVersion",
            f"the job input has formatVersion {version}, and this trainer reads {FORMAT_VERSION}: "
            "set the trainer image to the release of the operator that wrote it",
        )
    try:
        return JobInput.model_validate(value)
    except ValidationError as error:
        raise UserMistake("InvalidJobInput", _in_words(error)) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mark-trainer", description="Run one stage of a MARK training run.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run one stage and leave a Result")
    run.add_argument("--stage", required=True, choices=tuple(names.STAGE_NAMES), help="the stage to run")
    run.add_argument("--input", required=True, type=Path, help="the JobInput file, JSON")
    run.add_argument("--workspace", type=Path, default=Path(names.WORKSPACE_MOUNT), help="root of the workspace")
    run.add_argument("--run-uid", required=True, help="uid of the run; names its folder below runs/")
    run.add_argument("--attempt", type=int, default=1, help="which attempt at this stage this is, from 1")
    run.add_argument(
        "--termination-message",
        type=Path,
        default=Path(names.TERMINATION_MESSAGE_PATH),
        help="file that the Result is written to, when it can be written",
    )
    build = commands.add_parser("build-base-model", help="build a small base model from a folder of texts")
    build.add_argument("--texts", required=True, type=Path, help="folder with .txt files that no run's corpus holds")
    build.add_argument("--out", required=True, type=Path, help="folder to write the model to; replaced when it exists")
    build.add_argument("--family", choices=("llama", "mamba"), default="llama", help="kind of model")
    build.add_argument("--seed", type=int, default=7, help="seed of weights and order")
    build.add_argument("--steps", type=int, default=400, help="optimizer steps of 1024 tokens")
    return parser


def _stage_module(stage: str, job_input: JobInput) -> str:
    if stage != "preflight" and stage not in job_input.stages:
        raise UserMistake("StageNotInRun", f"--stage: {stage} is not one of the run's stages {list(job_input.stages)}")
    return f"mark_trainer.{names.stage_module(stage)}"


def _stop_on_signal() -> threading.Event:
    stop = threading.Event()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
    return stop


@contextmanager
def _claim(work: Work) -> Iterator[Lock]:
    """Keep every other run from the same work, such as one of a second cluster on this workspace.

    Between stages the claim stays, without a heartbeat; the run's next stage takes it over at once, and another
    cluster only after a day. A run that ends here gives it back, so that the next one need not wait until it is stale.
    """
    name = f"work-{work.job_input.replay_key[:16]}"
    with hold(work, name, CLAIM_WAIT_SECONDS, stale_elsewhere_seconds=STALE_CLAIM_SECONDS) as lock:
        try:
            yield lock
        except (UserMistake, BadData):
            raise
        except BaseException:
            lock.keep()
            raise


def _failed(stage: str, failure: Failure) -> Result:
    return Result.model_validate(
        {
            "stage": stage,
            "outcome": failure.outcome,
            "reason": failure.reason[:64],
            "message": failure.message[:1000],
        }
    )


def _leave(result: Result, path: Path) -> None:
    message = termination_message(result)
    print(message, flush=True)
    try:
        path.write_text(message, encoding="utf-8")
    except OSError as error:
        print(f"the Result was not written to {path}: {error}", file=sys.stderr)


def _in_words(error: ValidationError) -> str:
    problems: list[Any] = error.errors(include_url=False, include_context=False)
    return "; ".join(f"{'.'.join(str(part) for part in p['loc']) or 'job input'}: {p['msg']}" for p in problems)


if __name__ == "__main__":
    sys.exit(main())
