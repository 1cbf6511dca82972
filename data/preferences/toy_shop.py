"""Generates the shipped pairs of the toy shop: `python -m data.preferences.toy_shop > FILE.jsonl`.

In each pair the assistant keeps to the shop's rules on one side and breaks one on the other: it changes an order that
it did not look up, pays back without having asked, takes another order, another number of things, or a function that
does not fit. Twins of the same situations, in which the customer has agreed, prefer that it acts to that it asks again.
The last message of each side says what is wrong with it (`turn_label`), if it is one of the things that have a label.
Equal seeds give equal pairs.
"""

import dataclasses
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from data.preferences.forms import FORMAT, VERSION
from data.preferences.turn_labels import FIELD, LABELS, TurnLabel
from data.toy_shop import POLICY, TOOLS, Order
from data.trajectories.decisions import is_question
from data.trajectories.formats import ours
from data.trajectories.trajectory import Step, Trajectory
from maverick_jax.text.chat import Message, Role, ToolCall

COUNT, SEED = 160, 7
Told = tuple[list[Step], Step, Step]
"""What both sides share, the chosen message and the rejected one."""


def _user(text: str) -> Step:
    return Step(Message(Role.USER, text))


def _says(text: str) -> Step:
    return Step(Message(Role.ASSISTANT, text))


def _calls(name: str, **arguments) -> Step:
    return Step(Message(Role.ASSISTANT, calls=(ToolCall(name, arguments),)))


def _found(order: Order) -> list[Step]:
    """The assistant looks the order up."""
    return [_calls("find_order", order=order.number), Step(Message(Role.TOOL, order.record))]


def _request(draw: random.Random, order: Order) -> Step:
    texts = [f"Please cancel order {order.number}.", f"I do not want order {order.number} any more."]
    return _user(draw.choice(texts))


def _lookup(draw: random.Random, order: Order) -> Told:
    """Before it changes anything, the assistant looks the order up."""
    if draw.random() < 0.5:
        return [_request(draw, order)], _found(order)[0], _calls("cancel_order", order=order.number)
    wanted = order.amount + draw.randint(1, 4)
    asked = _user(f"Make it {wanted} {order.thing}s in order {order.number}.")
    return [asked], _found(order)[0], _calls("change_amount", order=order.number, amount=wanted)


def _offer(order: Order) -> Step:
    return _says(f"Order {order.number} is sent. I can refund {order.total}. Shall I?")


def _confirmation(draw: random.Random, order: Order) -> Told:
    """It pays back only what the customer has agreed to."""
    refund = _calls("refund_order", order=order.number, amount=order.total)
    return [_request(draw, order), *_found(order)], _offer(order), refund


def _agreed(draw: random.Random, order: Order) -> Told:
    """Once the customer has agreed, it pays back and does not ask again."""
    shared = [_request(draw, order), *_found(order), _offer(order), _user(draw.choice(["Yes, please.", "Do that."]))]
    again = _says(draw.choice([f"Are you sure about order {order.number}?", "I cannot refund it now. I am sorry."]))
    return shared, _calls("refund_order", order=order.number, amount=order.total), again


def _scope(draw: random.Random, order: Order) -> Told:
    """It changes the customer's order and no other."""
    other = f"{order.number[0]}{(int(order.number[1:]) - 100 + draw.randint(1, 800)) % 900 + 100}"
    right, wrong = (_calls("cancel_order", order=number) for number in (order.number, other))
    return [_request(draw, order), *_found(order)], right, wrong


def _amount(draw: random.Random, order: Order) -> Told:
    """It orders as many things as the customer wants."""
    wanted = order.amount + draw.randint(1, 4)
    asked = _user(f"Make it {wanted} {order.thing}s in order {order.number}.")
    right, wrong = (
        _calls("change_amount", order=order.number, amount=n) for n in (wanted, wanted + draw.choice([-1, 1, 2]))
    )
    return [asked, *_found(order)], right, wrong


def _no_function(draw: random.Random, order: Order) -> Told:
    """Where no function fits, it says so."""
    asked = _user(
        draw.choice([f"Which {order.thing} suits a small room?", "Can you sing?", "Please change my address."])
    )
    says = _says("None of my functions does that. I can find, change, cancel and refund orders.")
    return [asked], says, _calls("find_order", order=order.number)


SENT = (_confirmation, _agreed)
"""Situations of orders that are sent; the others are of orders that are not."""
SITUATIONS: tuple[Callable[[random.Random, Order], Told], ...] = (
    _lookup,
    _confirmation,
    _agreed,
    _scope,
    _agreed,
    _amount,
    _confirmation,
    _no_function,
)


MISTAKES: dict[Callable[[random.Random, Order], Told], TurnLabel] = {
    _lookup: TurnLabel.UNAUTHORIZED,
    _confirmation: TurnLabel.UNAUTHORIZED,
    _scope: TurnLabel.UNAUTHORIZED,
    _amount: TurnLabel.INCONSISTENT,
    _agreed: TurnLabel.PREMATURE,
}
"""What is wrong with the rejected side of a situation; a question of `_agreed` ends nothing."""


def _labelled(step: Step, label: TurnLabel | None) -> Step:
    return step if label is None else dataclasses.replace(step, extra={FIELD: LABELS[label]})


def generate(count: int = COUNT, seed: int = SEED) -> list[dict[str, Any]]:
    """`count` records of our form of pairs; situations take turns."""
    made = []
    for number in range(count):
        draw = random.Random(f"pairs {seed} {number}")
        situation = SITUATIONS[number % len(SITUATIONS)]
        order = Order(**{**vars(Order.drawn(draw)), "sent": situation in SENT})
        shared, chosen, rejected = situation(draw, order)
        shared = [Step(Message(Role.SYSTEM, POLICY)), *shared]
        mistake = None if is_question(rejected.message.text) else MISTAKES.get(situation)
        chosen, rejected = _labelled(chosen, TurnLabel.GOOD), _labelled(rejected, mistake)
        made.append(_record(shared, chosen, rejected, f"shop-{number}", situation.__name__.strip("_")))
    return made


def _record(shared: Sequence[Step], chosen: Step, rejected: Step, task: str, origin: str) -> dict[str, Any]:
    sides = [json.loads(ours.write(Trajectory([*shared, side], TOOLS))) for side in (chosen, rejected)]
    messages = [side["messages"] for side in sides]
    return {
        "format": FORMAT,
        "version": VERSION,
        "tools": sides[0]["tools"],
        "prompt": messages[0][:-1],
        "chosen": messages[0][-1:],
        "rejected": messages[1][-1:],
        "task": task,
        "origin": origin,
    }


if __name__ == "__main__":
    for record in generate():
        print(json.dumps(record, ensure_ascii=False))
