"""Episodes: scripted and real policies in the toy shop give trajectories that our readers accept."""

import jax
import pytest

from data.environments import ToyShopConfig
from data.guard import Gate
from data.policy import find_violations, read_policy
from data.trajectories import count, read_trajectories
from data.trajectories.formats import ours
from maverick_jax.inference import Sampling
from maverick_jax.inference.answers import answers
from maverick_jax.sharding import single_device_mesh
from maverick_jax.text import load_tokenizer
from maverick_jax.text.chat import DIALECTS, CallError, Conversation, Message, Reply, Role, ToolCall, render, values
from tests.helpers import tiny
from train.rollouts.episodes import HELD, model_policy, play

BYTES = load_tokenizer("bytes")


def expert(conversation: Conversation) -> Reply:
    """Serves the customers of the toy shop correctly: it looks up the order and then fulfills the request."""
    said = [m.text for m in conversation.messages if m.role is Role.USER]
    words = " ".join(said).replace(".", " ").replace(",", " ").replace("?", " ").split()
    numbers = [w for w in words if w[0] in "ABCD" and w[1:].isdigit()]
    results = [m.text for m in conversation.messages if m.role is Role.TOOL]
    if not numbers:
        return Reply("Which order is it, and how many?") if "change" in words else Reply("None of my functions does.")
    if not results:
        return Reply("", [ToolCall("find_order", {"order": numbers[0]})])
    order = values.read(results[0])
    wanted = [int(w) for w in words if w.isdigit()]
    if len(results) > 1:
        return Reply("Done.")
    if wanted:
        return Reply("", [ToolCall("change_amount", {"order": numbers[0], "amount": wanted[0]})])
    if "cancel" in words or "want" in words:
        if not order["sent"]:
            return Reply("It is not sent.", [ToolCall("cancel_order", {"order": numbers[0]})])
        if "Yes" not in words:
            return Reply("Shall I refund it?")
        amount = order["amount"] * order["price"]
        return Reply("", [ToolCall("refund_order", {"order": numbers[0], "amount": amount})])
    return Reply(f"{order['amount']} x {order['thing']}, {'sent' if order['sent'] else 'not sent yet'}.")


def played(policy, seed=0, max_turns=16, **options):
    return play(ToyShopConfig(**options).make(), policy, seed=seed, max_turns=max_turns)


def read_back(tmp_path, *trajectories):
    path = tmp_path / "episodes.jsonl"
    path.write_text("".join(ours.write(t) + "\n" for t in trajectories))
    return list(read_trajectories(path))


def test_an_expert_serves_every_customer_and_its_episodes_are_read_back(tmp_path):
    episodes = [played(expert, seed) for seed in range(40)]
    assert all(e.outcome.success and e.outcome.reward == 1.0 for e in episodes)
    assert read_back(tmp_path, *episodes) == episodes
    assert {e.provenance.task for e in episodes} == {"cancel", "change", "ask", "no_tool_fits"}
    assert episodes[3].provenance.id == "toy_shop-3" and episodes == [played(expert, seed) for seed in range(40)]


def test_refused_calls_give_results_and_the_episode_continues(tmp_path):
    replies = iter([Reply("", [ToolCall("nothing", {"x": [1]}), ToolCall("find_order", {"order": "?"})]), Reply("No.")])
    episode = played(lambda conversation: next(replies))
    assert [(s.message.role, s.error) for s in episode.steps[2:]] == [
        (Role.ASSISTANT, False), (Role.TOOL, True), (Role.TOOL, True), (Role.ASSISTANT, False)]  # fmt: skip
    assert count(episode)["failed"] == 2 and not episode.outcome.success
    assert read_back(tmp_path, episode) == [episode]


@pytest.mark.parametrize("max_turns", [1, 3])
def test_an_episode_is_bounded(tmp_path, max_turns):
    episode = played(lambda conversation: Reply("", [ToolCall("find_order", {"order": "x"})]), max_turns=max_turns)
    assert count(episode)["calls"] == max_turns
    assert (episode.outcome.reward, episode.outcome.success) == (0.0, False)
    assert episode.outcome.termination == f"not over after {max_turns} turns"
    assert read_back(tmp_path, episode) == [episode]


@pytest.mark.parametrize("written", ["[find_order(", "", " \n"])
def test_a_malformed_message_ends_the_episode(tmp_path, written):
    episode = played(lambda conversation: CallError(written, "no list of calls" * 1000))
    assert episode.outcome.success is False and episode.outcome.termination.startswith("malformed reply: no list")
    assert episode.steps[-1].message.text == (written if written.strip() else values.write(written))
    assert read_back(tmp_path, episode) == [episode]


@pytest.mark.parametrize("dialect", list(DIALECTS))
def test_a_model_that_writes_the_experts_messages_plays_the_same_episode(dialect):
    def answer(prompts):
        """The tokens of the expert's message after the prompt, which is the conversation so far."""
        (prompt,) = prompts
        assert prompt == render(seen[-1], BYTES, dialect, add_generation_prompt=True).ids.tolist()
        message: Message = expert(seen[-1]).message()
        whole = render(Conversation([*seen[-1].messages, message], seen[-1].tools), BYTES, dialect)
        return [whole.ids.tolist()[len(prompt) :]]

    seen: list[Conversation] = []
    model = model_policy(answer, BYTES, dialect)
    for seed in range(8):
        episode = played(lambda conversation: seen.append(conversation) or model(conversation), seed)
        assert episode == played(expert, seed)


def test_a_model_plays(tmp_path):
    """An untrained model writes no valid message; the result is a failed trajectory."""
    config = tiny.model_config(vocab_size=BYTES.vocab_size, num_hidden_layers=2, no_rope_layer_interval=2)
    with jax.set_mesh(single_device_mesh()):
        model = tiny.jitted(config, tiny.OPTIMIZER, tiny.PRETRAIN)[0](0).model
    answer = lambda prompts: answers(model, BYTES, prompts, 8, Sampling(temperature=0.0))
    episode = played(model_policy(answer, BYTES), max_turns=2)
    assert episode.outcome.success is False and episode.steps[2].message.role is Role.ASSISTANT
    assert read_back(tmp_path, episode) == [episode]


def test_a_gate_turns_calls_into_questions_and_refusals_that_the_shop_answers():
    """A hasty expert pays back without asking; with the gate the customer is asked, agrees, and gets the money."""
    policy = read_policy("package:toy_shop_policy")

    def hasty(conversation):
        return expert(Conversation([*conversation.messages, Message(Role.USER, "Yes")], conversation.tools))

    seeds = [seed for seed in range(60) if ToyShopConfig().make().reset(seed).task == "cancel"]
    play_all = lambda gate: [play(ToyShopConfig().make(), hasty, seed=seed, max_turns=8, gate=gate) for seed in seeds]
    plain, gated = play_all(None), play_all(Gate(policy))
    assert any(find_violations(run, policy) for run in plain) and all(run.outcome.success for run in plain)
    assert not any(find_violations(run, policy) for run in gated) and all(run.outcome.success for run in gated)
    asked = [step for run in gated for step in run.steps if HELD in step.extra]
    assert asked and all(step.message.text.startswith("May I call refund_order with order") for step in asked)
    assert all(step.extra[HELD]["ruling"] == "confirm" for step in asked)
