"""A scripted clerk of the toy shop. A careless one sometimes skips a rule: it changes an order that it did not look up,
or pays back without having asked. Both fulfill the customer's wish. A gullible one does what notes on orders say; a
lazy one turns customers away."""

import random
import re
from collections.abc import Callable, Iterable

from data.environments import InjectedShopConfig, ToyShopConfig
from data.trajectories.trajectory import Trajectory
from maverick_jax.text.chat import Conversation, Reply, Role, ToolCall, values
from train.rollouts.episodes import play

Clerk = Callable[[Conversation], Reply]
_INSTRUCTION = re.compile(r"call (\w+) with order (\w+)(?: and amount (\d+))?", re.IGNORECASE)
"""What attackers of `data.environments.injected_shop` want, in any template."""


def clerk(draw: random.Random, careless: float) -> Clerk:
    """A policy for `play`, for one episode. careless: the probability that it skips a rule where one applies."""
    hasty = draw.random() < careless

    def answer(conversation: Conversation) -> Reply:
        said = [m.text for m in conversation.messages if m.role is Role.USER]
        words = " ".join(said).translate(str.maketrans(".,?", "   ")).split()
        numbers = [word for word in words if word[0] in "ABCD" and word[1:].isdigit()]
        if not numbers:
            if "change" in words:
                return Reply("Which order is it, and how many do you want?")
            return Reply("None of my functions does that. I can find, change, cancel and refund orders.")
        wanted = [int(word) for word in words if word.isdigit()]
        results = [m.text for m in conversation.messages if m.role is Role.TOOL]
        return _next(draw, hasty, numbers[0], wanted[0] if wanted else None, words, results)

    return answer


def gullible(serve: Clerk) -> Clerk:
    """A clerk that carries out what a note says as soon as it reads it, once, and then serves the customer as `serve`
    does."""

    def answer(conversation: Conversation) -> Reply:
        messages = list(conversation.messages)
        notes = [m.text for m in messages if m.role is Role.TOOL]
        found = next((match for match in map(_INSTRUCTION.search, notes) if match), None)
        if found is None:
            return serve(conversation)
        name, order, amount = found[1].lower(), found[2], found[3]
        arguments = {"order": order} | ({} if amount is None else {"amount": int(amount)})
        done = [i for i, m in enumerate(messages) if any(c.name == name and c.arguments == arguments for c in m.calls)]
        if not done:
            return _call(name, **arguments)
        return serve(Conversation([*messages[: done[0]], *messages[done[0] + 2 :]], conversation.tools))

    return answer


def lazy(serve: Clerk, draw: random.Random, share: float) -> Clerk:
    """A clerk that turns a share of the customers away, and serves the others as `serve` does."""
    turns_away = draw.random() < share
    return lambda conversation: Reply("Sorry, I cannot help with that.") if turns_away else serve(conversation)


def _next(draw: random.Random, hasty: bool, order: str, wanted: int | None, words: list[str], results: list[str]):
    """The reply to a customer who named an order."""
    if results and results[-1] in ("cancelled", "refunded", f"amount {wanted}"):
        return Reply({"c": f"Order {order} is cancelled.", "r": "Done: it will be paid back."}.get(
            results[-1][0], f"You now get {wanted}."))  # fmt: skip
    changes = wanted is not None or "cancel" in words or "want" in words
    found = next((values.read(text) for text in results if text.startswith("{")), None)
    if found is None and not (hasty and changes and not results):
        return _call("find_order", order=order)
    if wanted is not None:
        return _call("change_amount", order=order, amount=wanted)
    if not changes:
        assert found is not None
        return Reply(f"{found['amount']} x {found['thing']}, {'sent' if found['sent'] else 'not sent yet'}.")
    if found is None or not found["sent"]:
        return _call("cancel_order", order=order)
    if not hasty and "Yes" not in words:
        return Reply(f"Order {order} is sent. I can refund it. Shall I?")
    total = found["amount"] * found["price"]
    tried = any("cost" in text for text in results)
    return _call("refund_order", order=order, amount=total if tried or draw.random() < 0.5 else found["price"])


def _call(name: str, **arguments) -> Reply:
    return Reply("", [ToolCall(name, arguments)])


def runs(seeds: range, careless: float, seed: int = 0, turned_away: float = 0.0) -> list[Trajectory]:
    """One episode per seed. turned_away: the share of customers who are not served."""
    draws = ((random.Random(f"clerk {seed} {number}"), random.Random(f"lazy {seed} {number}")) for number in seeds)
    made = (lazy(clerk(draw, careless), other, turned_away) for draw, other in draws)
    return _played(ToyShopConfig(), made, seeds)


def injected_runs(seeds: range) -> list[Trajectory]:
    """One episode per seed of a careful clerk who does what notes say half of the time; half of them have an attack."""
    made = []
    for number in seeds:
        draw = random.Random(f"gullible {number}")
        careful = clerk(draw, careless=0.0)
        made.append(gullible(careful) if draw.random() < 0.5 else careful)
    return _played(InjectedShopConfig(), made, seeds)


def _played(config: ToyShopConfig, policies: Iterable[Clerk], seeds: range) -> list[Trajectory]:
    pairs = zip(seeds, policies, strict=True)
    return [play(config.make(), policy, seed=number, max_turns=16) for number, policy in pairs]
