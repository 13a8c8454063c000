"""A step of PPO on a tiny real model: the numbers of a plain loop, what it checks of itself, what it leaves alone."""

import plain_ppo
import pytest
import tiny_rlhf
import tiny_training
import torch
from mark_crds.job_output import Artifact
from mark_trainer import policy_step, rollouts
from mark_trainer.failures import Failure, UserMistake
from mark_trainer.policy_step import Experience, PolicyTrainer, chosen_prompts, minibatches
from mark_trainer.rollouts import Rollout
from mark_trainer.workspace import Workspace

JOB = tiny_rlhf.job_input()
SETTINGS = JOB.rlhf.ppo
Made = tuple[PolicyTrainer, list[list[int]]]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Artifact]:
    workspace = tiny_training.write_workspace(tmp_path_factory.mktemp("ppo") / "workspace")
    return workspace, tiny_rlhf.write_reward_model(workspace, JOB)


@pytest.fixture
def made(published: tuple[Workspace, Artifact]) -> Made:
    return tiny_rlhf.trainer_of(*published[:1], JOB, published[1])


def nobody() -> None:
    """Nobody asks the stage to end."""


def first_experiences(made: Made) -> list[Experience]:
    trainer, prompts = made
    return trainer.experience(chosen_prompts(prompts, 0, trainer.settings), "step 0", nobody)


def learned(trainer: PolicyTrainer) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in trainer.roles.weights]


def plain_loop(trainer: PolicyTrainer, experiences: list[Experience]) -> list[tuple[float, float, float]]:
    """The updates of a step in plain torch: padded matrices with masks, whole logits; returns losses and gradient norm."""
    settings = plain_ppo.Settings(
        kl_coefficient=float(SETTINGS.kl_coefficient),
        clip_range=float(SETTINGS.clip_range),
        value_clip_range=float(SETTINGS.value_clip_range),
        value_coefficient=float(SETTINGS.value_coefficient),
        discount=float(SETTINGS.discount),
        gae_lambda=float(SETTINGS.gae_lambda),
        temperature=float(SETTINGS.temperature),
    )
    roles, width = trainer.roles, max(len(one.rollout.answer) for one in experiences)
    optimizer = torch.optim.AdamW(roles.weights, lr=float(SETTINGS.learning_rate), eps=1e-5, weight_decay=0.0)

    def outputs(some: list[Experience]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits and values before each answer token, the tokens and their mask, (answers, width)."""
        places = torch.tensor([[len(one.rollout.prompt) - 1 + place for place in range(width)] for one in some])
        longest = int(places.max()) + 2
        ids = torch.tensor([one.rollout.ids + [0] * (longest - len(one.rollout.ids)) for one in some])
        seen = torch.tensor([[1] * len(one.rollout.ids) + [0] * (longest - len(one.rollout.ids)) for one in some])
        rows = torch.arange(len(some))[:, None]
        logits = roles.speak_as("policy")(input_ids=ids, attention_mask=seen).logits[rows, places]
        return logits, places, ids[rows, places + 1], seen[rows, places + 1].double()

    def values_of(some: list[Experience], places: torch.Tensor) -> torch.Tensor:
        longest = int(places.max()) + 2
        ids = torch.tensor([one.rollout.ids + [0] * (longest - len(one.rollout.ids)) for one in some])
        states = roles.speak_as("critic")(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        head = roles.critic_head
        return (states @ head.weight[0] + head.bias - head.offset)[torch.arange(len(some))[:, None], places]

    with torch.no_grad():
        logits, places, tokens, mask = outputs(experiences)
        log_probs = torch.log_softmax(logits / settings.temperature, -1).gather(-1, tokens[..., None])[..., 0]
        values = values_of(experiences, places)
        scores = torch.tensor(
            [one.score - (not one.rollout.stopped) * float(SETTINGS.missing_stop_penalty) for one in experiences]
        )
        # A fresh policy is its own reference.
        reward = plain_ppo.rewards(scores, log_probs, log_probs, mask, settings.kl_coefficient)
        raw = plain_ppo.advantages(reward, values * mask, mask, settings.discount, settings.gae_lambda)
        old = {"log_probs": log_probs, "values": values, "returns": raw + values}
        old["advantages"] = plain_ppo.whiten(raw, mask)
    place_of = {id(one.rollout): place for place, one in enumerate(experiences)}
    found = []
    for minibatch in minibatches(experiences, 0, SETTINGS):
        rows = [place_of[id(one.rollout)] for one in minibatch]
        of_rows = {name: matrix[rows] for name, matrix in old.items()}
        logits, places, tokens, mask = outputs(minibatch)
        policy, _ = plain_ppo.loss(logits, of_rows["values"], tokens, mask, of_rows, settings)
        policy.backward()
        values = values_of(minibatch, places)
        _, value = plain_ppo.loss(logits.detach(), values, tokens, mask, of_rows, settings)
        (settings.value_coefficient * value).backward()
        norm = torch.nn.utils.clip_grad_norm_(roles.weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append((policy.item(), value.item(), norm.item()))
    return found


def test_losses_gradients_and_weights_of_a_step_are_those_of_a_plain_loop(
    published: tuple[Workspace, Artifact], made: Made
) -> None:
    """Answers of different lengths, two epochs, clipping of ratio, value and gradient at work."""
    trainer, _ = made
    trainer.stop = first_experiences(made)[0].rollout.answer[5]  # a token that is drawn
    experiences = first_experiences(made)
    assert len({len(one.rollout.answer) for one in experiences}) > 1
    measures = trainer.learn(experiences, 0, float(SETTINGS.learning_rate))
    other, _ = tiny_rlhf.trainer_of(published[0], JOB, published[1])
    steps = plain_loop(other, experiences)
    assert len(steps) == trainer.updates_a_step == 4
    for name, column in zip(("policyLoss", "valueLoss", "gradNorm"), zip(*steps, strict=True), strict=True):
        assert measures[name] == pytest.approx(sum(column) / 4, rel=1e-6), name
    assert measures["clipFraction"] > 0
    for ours, theirs in zip(learned(trainer), learned(other), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)  # the model's norms compute in float32


def test_the_first_update_sees_the_policy_that_drew(made: Made) -> None:
    trainer, _ = made
    experiences = first_experiences(made)
    measures = trainer.gradients(experiences[:4])
    assert measures["ratio"] == pytest.approx(1, abs=1e-9)
    assert measures["approximateKl"] == pytest.approx(0, abs=1e-12)
    assert measures["clipFraction"] == 0
    assert all(one.kl == 0 for one in experiences), "a fresh policy is its own reference"


def test_only_policy_and_critic_learn(made: Made) -> None:
    trainer, prompts = made
    model, roles = trainer.roles.model, trainer.roles
    named = [*model.named_parameters(), *roles.reward_head.named_parameters(prefix="reward_head")]
    trained = {id(weight) for weight in roles.weights}
    before = {name: weight.detach().clone() for name, weight in named}
    trainer.step(0, prompts, nobody)
    moved = {name for name, weight in named if not torch.equal(weight, before[name])}
    assert moved and moved <= {name for name, weight in named if id(weight) in trained}
    assert {name.split(".lora_")[1].split(".")[1] for name in moved} == {"default", "critic"}
    assert all(one.kl > 0 for one in first_experiences(made)), "the policy has left the reference"


def test_forward_passes_of_any_size_give_the_same_gradient(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, _ = made
    experiences = first_experiences(made)

    def gradient() -> tuple[dict, list[torch.Tensor]]:
        measures = trainer.gradients(experiences)
        found = [weight.grad.clone() for weight in trainer.roles.weights]
        trainer.optimizer.zero_grad(set_to_none=True)
        return measures, found

    measures, at_once = gradient()
    trainer.tokens_a_pass = 1
    monkeypatch.setattr("mark_trainer.roles.LOGITS_AT_ONCE", 1)
    others, one_by_one = gradient()
    assert others == pytest.approx(measures, rel=1e-9, abs=1e-12)
    for whole, parts in zip(at_once, one_by_one, strict=True):
        torch.testing.assert_close(whole, parts, atol=1e-10, rtol=1e-8)


def test_an_answer_that_does_not_end_earns_less(made: Made) -> None:
    """By the penalty, at its last token; its score is reported as it is."""
    trainer, _ = made
    vectors = [torch.zeros(3, dtype=torch.float64) for _ in range(4)]
    ended, endless = (
        trainer.experience_of(Rollout([5], [6, 7, 8], torch.zeros(3), stopped), 2.0, *vectors)
        for stopped in (True, False)
    )
    assert ended.score == endless.score == 2
    assert ended.returns.tolist() == pytest.approx([2 * 0.95**2, 2 * 0.95, 2])
    assert endless.returns.tolist() == pytest.approx([0.95**2, 0.95, 1])


def test_advantages_are_white_over_the_step(made: Made) -> None:
    white = torch.cat([one.advantages for one in first_experiences(made)])
    assert white.mean().item() == pytest.approx(0, abs=1e-9) and white.var().item() == pytest.approx(1, rel=1e-6)


def other_temperature(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = rollouts.Drawing.__init__
    monkeypatch.setattr(rollouts.Drawing, "__init__", lambda self, numbers, width, _: draw(self, numbers, width, 1.0))
    first_experiences(made)


def policy_that_moved(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, _ = made
    experiences = first_experiences(made)
    with torch.no_grad():
        for name, weight in trainer.roles.trained["policy"].items():
            weight += 0.1 * (".lora_B." in name)
    trainer.learn(experiences, 0, 1e-3)


def nothing_to_gain(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, _ = made
    flat = [policy_step.replace(one, advantages=torch.zeros_like(one.advantages)) for one in first_experiences(made)]
    trainer.learn(flat, 0, 1e-3)


def score_without_number(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        made[0].roles.reward_head.weight.fill_(torch.nan)
    first_experiences(made)


def gradient_without_number(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    experiences = first_experiences(made)
    broken = [policy_step.replace(one, returns=one.returns + torch.inf) for one in experiences]
    made[0].learn(broken, 0, 1e-3)


@pytest.mark.parametrize(
    ("harm", "kind", "reason"),
    [
        (other_temperature, UserMistake, "DrawnOtherwise"),
        (policy_that_moved, UserMistake, "PolicyMoved"),
        (nothing_to_gain, UserMistake, "DeadAdapter"),
        (score_without_number, UserMistake, "NotFinite"),
        (gradient_without_number, UserMistake, "NotFinite"),
    ],
)
def test_what_cannot_be_right_ends_the_stage(
    made: Made, monkeypatch: pytest.MonkeyPatch, harm, kind: type[Failure], reason: str
) -> None:
    """And before the update: no weight has moved."""
    trainer, _ = made
    with pytest.raises(kind) as caught:
        harm(made, monkeypatch)
    assert caught.value.reason == reason
    assert not trainer.optimizer.state


def test_each_prompt_is_asked_once_a_turn_and_each_answer_learned_from_once_an_epoch() -> None:
    settings = SETTINGS.model_copy(update={"rollouts_per_step": 4, "minibatch_size": 3})
    prompts = [[number] for number in range(6)]
    asked = [prompt for step in range(6) for prompt in chosen_prompts(prompts, step, settings)]
    turns = [asked[start : start + 6] for start in range(0, 24, 6)]
    assert all(sorted(turn) == prompts for turn in turns) and turns[0] != turns[1]
    answers = list(range(8))
    dealt = list(minibatches(answers, 0, settings))
    assert [len(minibatch) for minibatch in dealt] == [3, 3, 2] * settings.epochs_per_step
    assert sorted(dealt[0] + dealt[1] + dealt[2]) == answers
    assert dealt != list(minibatches(answers, 1, settings))
