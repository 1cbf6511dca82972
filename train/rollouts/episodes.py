"""Runs a model in an environment: one episode gives one trajectory."""

from collections.abc import Callable, Sequence

from data.environments import Environment
from data.guard import Gate, GateVerdict, Ruling
from data.trajectories import Outcome, Provenance, Step, Trajectory
from data.trajectories.trajectory import MAX_LABEL
from maverick_jax.inference.replies import read_reply
from maverick_jax.text import Tokenizer
from maverick_jax.text.chat import CallError, Conversation, Message, Reply, Role, dialect_of, render, values

HELD = "held_back"
"""Field of a message whose calls were held back, or that stands in their place."""
Policy = Callable[[Conversation], Reply | CallError]
"""(The conversation so far, with its tools) -> the assistant's next message, or a malformed one."""
Answer = Callable[[Sequence[Sequence[int]]], list[list[int]]]
"""Prompts as token ids -> the model's answer to each, including the token that ends it."""


def play(
    environment: Environment, policy: Policy, *, seed: int, max_turns: int, gate: Gate | None = None
) -> Trajectory:
    """Plays the episode of `seed`. It ends with the environment's outcome, with a malformed message, or after
    `max_turns` messages of the assistant. The last two are failures with reward 0. `gate`: what it holds back does not
    reach the environment. A question for the user's agreement takes the place of the message; refused calls get errors
    as their results, so that the agent can go on. `extra` of such a message has the verdict."""
    opening = environment.reset(seed)
    steps = list(opening.steps)
    outcome = Outcome(0.0, False, f"not over after {max_turns} turns")
    for _ in range(max_turns):
        reply = policy(Conversation([step.message for step in steps], environment.tools))
        if isinstance(reply, CallError):
            steps.append(Step(Message(Role.ASSISTANT, as_text(reply.text))))
            outcome = Outcome(0.0, False, str(reply)[:MAX_LABEL])
            break
        given = reply.message()
        verdict = GateVerdict() if gate is None else gate.check(Trajectory(steps, environment.tools), given)
        held = {HELD: verdict.as_json()} if verdict.words else {}
        if verdict.ruling is Ruling.BLOCK:
            steps += [Step(given, extra=held), *refused(given, verdict.words)]
            continue
        message = verdict.message(given)
        steps.append(Step(message, extra=held))
        feedback = environment.step(message)
        steps += feedback.steps
        if feedback.outcome is not None:
            outcome = feedback.outcome
            break
    provenance = Provenance(format=environment.name, id=f"{environment.name}-{seed}", task=opening.task)
    return Trajectory(steps, environment.tools, outcome, provenance)


def refused(message: Message, why: str) -> list[Step]:
    """An error as the result of each call."""
    return [Step(Message(Role.TOOL, f"Error: {why}", call_id=call.id), error=True) for call in message.calls]


def as_text(text: str) -> str:
    """A malformed reply as a message's text. Messages must not be blank, so white space is written as JSON."""
    return text if text.strip() else values.write(text)


def model_policy(answer: Answer, tokenizer: Tokenizer, dialect: str | None = None) -> Policy:
    """The policy of the model behind `answer`. `dialect`: the dialect of its calls; None: the tokenizer's, or else the
    default."""
    dialect = dialect_of(dialect, tokenizer).name

    def policy(conversation: Conversation) -> Reply | CallError:
        prompt = render(conversation, tokenizer, dialect, add_generation_prompt=True)
        (written,) = answer([prompt.ids.tolist()])
        return read_reply(written, tokenizer, dialect)

    return policy
