"""The stage ppo on a tiny real model: what it publishes, how it goes on after an interruption, what it refuses."""

import json
import random
import shutil
from pathlib import Path

import pytest
import tiny_rlhf
import tiny_training
import torch
from mark_crds.job_input import JobInput
from mark_trainer import evaluate, lora, ppo, reward
from mark_trainer.failures import BadData, Failure, Stopped, UserMistake
from mark_trainer.outcome import keep_result
from mark_trainer.publish import provenance_of, verify_folder
from mark_trainer.workspace import Work, Workspace
from safetensors.torch import load_file

NO_LORA = ["reward", "ppo"]
WARM = {"llama": "0.05", "mamba": "0.7"}  # a temperature at which the tiny model neither knows nor guesses


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace whose run `run-1` has done lora and reward. Read only: copy it."""
    workspace = tiny_training.write_workspace(tmp_path_factory.mktemp("ppo") / "workspace")
    for stage, run in (("lora", lora.run), ("reward", reward.run)):
        work = tiny_training.work_of(workspace, tiny_rlhf.job_input(), stage=stage)
        keep_result(work, run(work))
    return workspace


@pytest.fixture
def workspace(template: Workspace, tmp_path: Path) -> Workspace:
    return Workspace(Path(shutil.copytree(template.root, tmp_path / "workspace")))


def work_of(workspace: Workspace, job: JobInput, uid: str = "run-1", attempt: int = 1) -> Work:
    return tiny_training.work_of(workspace, job, stage="ppo", uid=uid, attempt=attempt)


def steps_of(workspace: Workspace, uid: str = "run-1") -> list[dict]:
    lines = workspace.path(f"runs/{uid}/logs/metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["stage"] == "ppo"]


def test_it_publishes_an_adapter_with_its_provenance_and_evaluation_measures_it(workspace: Workspace) -> None:
    job = tiny_rlhf.job_input(stages=["lora", "reward", "ppo", "eval"])
    work = work_of(workspace, job)
    result = ppo.run(work)
    keep_result(work, result)
    (artifact,) = result.artifacts
    assert (artifact.kind, artifact.path) == ("adapter", f"adapters/{artifact.digest}")
    folder = workspace.path(artifact.path)
    assert verify_folder(folder, artifact.path) == artifact.digest
    names = {"adapter_config.json", "adapter_model.safetensors", "manifest.json"}
    assert {path.name for path in folder.iterdir()} == names
    assert str(workspace.root) not in (folder / "adapter_config.json").read_text()

    provenance, parent = provenance_of(folder, artifact.path), work.made("adapter", "lora")
    judge = work.made("rewardModel", "reward")
    assert parent is not None and judge is not None
    assert provenance["parent"] == {"path": parent.path, "digest": parent.digest}
    assert provenance["rewardModel"] == {"path": judge.path, "digest": judge.digest}
    assert len(provenance["liveModules"]) == 2 * 7
    assert provenance["settings"] == {**job.rlhf.ppo.to_dict(), "maxNewTokens": 12}
    assert provenance["prompt"] == provenance_of(workspace.path(parent.path), "")["prompt"]
    held_out = provenance["heldOut"]
    assert held_out["questions"] == 16 and held_out["before"]["kl"] == 0 < held_out["after"]["kl"]
    rise = held_out["after"]["score"] - held_out["before"]["score"]
    assert held_out["scoreRise"]["value"] == pytest.approx(rise) and held_out["scoreRise"]["clusters"] == 4

    before, after = (
        load_file(workspace.path(path) / "adapter_model.safetensors") for path in (parent.path, artifact.path)
    )
    assert before.keys() == after.keys() and not any(torch.equal(before[name], after[name]) for name in before)
    measures = {measure.name: measure.value for measure in result.measures}
    assert measures["family"] == "reinforcementLearning" and measures["rollouts"] == "32"

    steps = steps_of(workspace)
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    wanted = {"score", "kl", "entropy", "ratio", "clipFraction", "approximateKl", "policyLoss", "valueLoss"}
    wanted |= {"answerTokens", "stoppedShare", "gradNorm", "learningRate", "tokensPerSecond", "memoryGiB"}
    assert wanted == set(steps[0]) - {"stage", "step", "attempt"}
    assert [step["learningRate"] for step in steps] == pytest.approx([3e-3, 2.25e-3, 1.5e-3, 0.75e-3])
    assert steps[0]["kl"] == 0 < steps[-1]["kl"]
    assert {path.name for path in (work.run_folder / "checkpoints-ppo").iterdir()} == {"step-3", "step-4"}

    report = evaluate.run(tiny_training.work_of(workspace, job, stage="eval"))
    document = json.loads(workspace.path(next(a.path for a in report.artifacts if a.kind == "report")).read_text())
    assert document["adapter"] == {"path": artifact.path, "digest": artifact.digest}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_without_lora_the_policy_begins_as_the_base_model(tmp_path: Path, family: str) -> None:
    workspace = tiny_training.write_workspace(tmp_path / "workspace", training=2, validation=1, family=family)
    few = {"steps": 2, "rolloutsPerStep": 4, "epochsPerStep": 1}
    job = tiny_rlhf.job_input(stages=NO_LORA, ppo={**few, "temperature": WARM[family]})
    tiny_rlhf.write_reward_model(workspace, job)
    result = ppo.run(work_of(workspace, job))
    provenance = provenance_of(workspace.path(result.artifacts[0].path), "")
    assert provenance["parent"] is None and provenance["base"]["family"] == family
    first, second = steps_of(workspace)
    assert first["kl"] == 0 < second["kl"]
    assert (first["ratio"], first["clipFraction"]) == (pytest.approx(1, abs=1e-5), 0)


class StopAt:
    """Asks the stage to end once a step is done, as SIGTERM does."""

    def __init__(self, work: Work, step: int) -> None:
        self.stop, self.step, self.checkpoints = work.stop, step, []
        object.__setattr__(work, "progress", self)

    def report(self, step: int, steps: int, **measures: float) -> None:
        if step == self.step:
            self.stop.set()

    def kept(self, step: int) -> None:
        self.checkpoints.append(step)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_an_interrupted_run_ends_with_the_adapter_of_a_straight_one(tmp_path: Path, family: str) -> None:
    """Bit for bit, policy and all that it learned by, stopped at two random steps and again behind the last one: the
    digest is over the weights; the manifest's measures are the same too."""
    workspace = tiny_training.write_workspace(tmp_path / "workspace", training=2, validation=1, family=family)
    steps = {"llama": 8, "mamba": 3}[family]
    few = {"steps": steps, "rolloutsPerStep": 4, "minibatchSize": 2}
    job = tiny_rlhf.job_input(stages=NO_LORA, ppo={**few, "temperature": WARM[family]})
    found = []
    halts = (*sorted(random.sample(range(1, steps), 2)), steps)
    print(f"stopped behind steps {halts}")
    for uid, stops in (("straight", ()), ("halting", halts)):
        tiny_rlhf.write_reward_model(workspace, job, uid=uid)
        for step in stops:
            work = work_of(workspace, job, uid=uid)
            stopper = StopAt(work, step)
            torch.manual_seed(random.randrange(1000))
            with pytest.raises(Stopped, match=rf"kept step {step} of {steps}") as caught:
                ppo.run(work)
            assert caught.value.exit_code == 75 and stopper.checkpoints[-1] == step
        result = ppo.run(work_of(workspace, job, uid=uid, attempt=2))
        provenance = provenance_of(workspace.path(result.artifacts[0].path), "")
        newest = load_file(workspace.path(f"runs/{uid}/checkpoints-ppo/step-{steps}") / "weights.safetensors")
        found.append((result.artifacts, provenance["heldOut"], newest))
        shutil.rmtree(workspace.path("adapters"))
        assert [line["step"] for line in steps_of(workspace, uid)] == list(range(1, steps + 1))
    (straight, measured, weights), (halting, measured_again, weights_again) = found
    assert straight == halting and measured == measured_again
    assert all(torch.equal(weights[name], weights_again[name]) for name in weights)


def test_asked_to_end_while_answers_are_drawn_it_keeps_what_is_done(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step that was begun is lost, and no other: no weight had moved yet."""
    work = work_of(workspace, tiny_rlhf.job_input())
    draw, calls = ppo.PolicyTrainer.experience, []

    def asked_in_the_third_step(self, prompts, what_for, before_batch):
        calls.append(what_for)
        if what_for == "step 2":
            work.stop.set()
        return draw(self, prompts, what_for, before_batch)

    monkeypatch.setattr(ppo.PolicyTrainer, "experience", asked_in_the_third_step)
    with pytest.raises(Stopped, match="kept step 2 of 4"):
        ppo.run(work)
    assert calls == ["held out", "step 0", "step 1", "step 2"]
    again = work_of(workspace, tiny_rlhf.job_input(), attempt=2)
    calls.clear()
    ppo.run(again)
    assert again.stop.is_set() is False and calls == ["step 2", "step 3", "held out"]


@pytest.mark.slow
def test_a_checkpoint_of_other_settings_is_passed_over(workspace: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    work = work_of(workspace, tiny_rlhf.job_input())
    StopAt(work, 2)
    with pytest.raises(Stopped):
        ppo.run(work)
    first_attempt = steps_of(workspace)
    ppo.run(work_of(workspace, tiny_rlhf.job_input(ppo={"learningRate": "2e-5"}), attempt=2))
    assert "belongs to other data or settings" in caplog.text
    started_over = steps_of(workspace)
    assert [line["step"] for line in started_over] == [1, 2, 3, 4]
    rates = [[line["learningRate"] for line in lines[:2]] for lines in (first_attempt, started_over)]
    assert all(before != after for before, after in zip(*rates, strict=True)), "the steps of other settings are gone"


@pytest.mark.slow
def test_the_score_rises(tmp_path: Path) -> None:
    """On questions of documents that it never saw, by more than chance over documents."""
    workspace = tiny_training.write_workspace(tmp_path / "workspace")
    many = {"steps": 12, "rolloutsPerStep": 16, "minibatchSize": 16, "epochsPerStep": 4}
    job = tiny_rlhf.job_input(stages=NO_LORA, ppo={**many, "learningRate": "1e-2", "klCoefficient": "0.01"})
    tiny_rlhf.write_reward_model(workspace, job)
    result = ppo.run(work_of(workspace, job))
    scores = [line["score"] for line in steps_of(workspace)]
    held_out = provenance_of(workspace.path(result.artifacts[0].path), "")["heldOut"]
    print(f"training questions {scores[0]:.2f} -> {scores[-1]:.2f}, held out {held_out}")
    assert sum(scores[-3:]) > sum(scores[:3])
    assert held_out["scoreRise"]["low"] > 0


@pytest.mark.slow
def test_in_bfloat16_drawing_and_learning_stay_near_each_other(tmp_path: Path) -> None:
    """The checks of every step let its rounding through."""
    workspace = tiny_training.write_workspace(tmp_path / "workspace", training=2, validation=1)
    job = tiny_rlhf.job_input(stages=NO_LORA, ppo={"steps": 2}, lora={"precision": "bfloat16"})
    tiny_rlhf.write_reward_model(workspace, job)
    result = ppo.run(work_of(workspace, job))
    adapter = workspace.path(result.artifacts[0].path)
    assert provenance_of(adapter, "")["precision"] == "bfloat16"
    assert {weight.dtype for weight in load_file(adapter / "adapter_model.safetensors").values()} == {torch.float32}


def no_reward_model(workspace: Workspace) -> JobInput:
    workspace.path("runs/run-1/results/reward.json").unlink()
    return tiny_rlhf.job_input()


def no_steps(workspace: Workspace) -> JobInput:
    return tiny_rlhf.job_input(ppo={"steps": 0})


def no_base_model(workspace: Workspace) -> JobInput:
    return tiny_rlhf.job_input(baseModel=None)


def other_base_model(workspace: Workspace) -> JobInput:
    tiny_training.write_base(workspace.path("base/other"), seed=2)
    return tiny_rlhf.job_input(baseModel={"path": "base/other"})


def shared_documents(workspace: Workspace) -> JobInput:
    rows = tiny_training.rows(range(100, 104), "train")
    tiny_training.write_dataset(workspace.path("datasets/contracts"), rows, rows[-4:])
    return tiny_rlhf.job_input()


@pytest.mark.parametrize(
    ("harm", "kind", "reason"),
    [
        (no_steps, UserMistake, "NoSteps"),
        (no_base_model, UserMistake, "NoBaseModel"),
        (no_reward_model, UserMistake, "NoRewardModel"),
        (other_base_model, BadData, "OtherBaseModel"),
        (shared_documents, BadData, "SplitOverlap"),
    ],
)
def test_a_run_that_cannot_work_is_refused(workspace: Workspace, harm, kind: type[Failure], reason: str) -> None:
    with pytest.raises(kind) as caught:
        ppo.run(work_of(workspace, harm(workspace)))
    assert caught.value.reason == reason
