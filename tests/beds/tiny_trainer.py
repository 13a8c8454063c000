"""A trainer that computes nothing, for tests of what surrounds one: it reads its JobInput, tells progress, leaves the files, the
Result and the exit code of a stage, and keeps a checkpoint on SIGTERM. What it shall do besides stands in TINY_TRAINER.
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from mark_crds.job_input import JobInput
from mark_crds.job_output import ExitCode, Measure, Result

OUTCOMES = {64: ("UserMistake", "NoSense"), 65: ("BadData", "EncryptedPdf"), 70: ("MachineTrouble", "OutOfMemory")}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["run"])
    for name in ("--stage", "--run-uid"):
        parser.add_argument(name, required=True)
    for name in ("--input", "--workspace", "--termination-message"):
        parser.add_argument(name, required=True, type=Path)
    parser.add_argument("--attempt", required=True, type=int)
    options = parser.parse_args()
    job = JobInput.model_validate_json(options.input.read_text())
    run_folder = options.workspace / "runs" / options.run_uid
    with (options.workspace / "calls.jsonl").open("a") as calls:
        calls.write(
            json.dumps({"stage": options.stage, "attempt": options.attempt, "stages": job.stages, "name": job.name})
            + "\n"
        )

    def leave(code: int, outcome: str, reason: str, message: str) -> int:
        result = Result(
            stage=options.stage,
            outcome=outcome,
            reason=reason,
            message=message,
            measures=(Measure(name="rows", value="4"),),
        )
        text = json.dumps(result.to_dict())
        print(text, flush=True)
        options.termination_message.write_text(text)
        return code

    def stopped(_number: int, _frame: FrameType | None) -> None:
        (run_folder / "checkpoint").write_text("step 1")
        sys.exit(leave(ExitCode.STOPPED, "Stopped", "StoppedAfterCheckpoint", "asked to end and kept step 1 of 2"))

    signal.signal(signal.SIGTERM, stopped)
    print(f"{options.stage}:  50 %  step 1/2  loss 1.5", flush=True)
    wish, _, stage = os.environ.get("TINY_TRAINER", "").partition(" ")
    if stage == options.stage:
        if wish == "wait" and not (run_folder / "checkpoint").exists():
            time.sleep(60)
        if wish == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if wish.isdigit():
            return leave(int(wish), *OUTCOMES[int(wish)], "corpus/secret.pdf: is encrypted; remove it")
    if options.stage != "preflight":
        (run_folder / "results").mkdir(exist_ok=True)
        (run_folder / "results" / f"{options.stage}.json").write_text("{}")
    print(f"{options.stage}: 100 %  step 2/2  loss 1.25", flush=True)
    return leave(0, "Done", "Done", f"{options.stage} did its work")


if __name__ == "__main__":
    sys.exit(main())
