"""The toy shop as an environment: a customer has a request about one order and answers the assistant's questions."""

import dataclasses
import random
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field

from data.environments.base import EnvironmentConfig, Feedback, Opening
from data.toy_shop import POLICY, TOOLS, Order, Shop
from data.trajectories.decisions import is_question
from data.trajectories.trajectory import Outcome, Step
from maverick_jax.text.chat import Message, Role

ShopTask = Literal["cancel", "change", "ask", "no_tool_fits"]


class ToyShopConfig(EnvironmentConfig):
    """`kind: toy_shop`: customers of the toy shop, which `trajectory_tiny` learns to serve."""

    kind: Literal["toy_shop"] = "toy_shop"
    """The toy shop."""
    tasks: Annotated[tuple[ShopTask, ...], Field(min_length=1, strict=False)] = (
        "cancel",
        "change",
        "ask",
        "no_tool_fits",
    )
    """Tasks of the customers; the episode's seed draws one."""
    declare: bool = True
    """Whether the shop's rules and tools are declared to the model. false: prompts are short, and the model must know
    them."""

    def make(self) -> "ToyShop":
        return ToyShop(self)


@dataclasses.dataclass
class _Customer:
    """A customer's messages and wish."""

    request: str
    answers: list[str]
    """Answers to the assistant's questions, in order."""
    satisfied: Callable[[str], bool]
    """Whether the episode succeeded, given the text of the assistant's last message."""


class ToyShop:
    """The toy shop with one customer per episode. An episode ends with the assistant's first message that contains no
    call and no question that the customer can answer."""

    name = "toy_shop"

    def __init__(self, config: ToyShopConfig):
        self.config, self.tools = config, TOOLS if config.declare else ()

    def reset(self, seed: int) -> Opening:
        draw = random.Random(f"toy_shop {seed}")
        task = draw.choice(self.config.tasks)
        order = Order.drawn(draw)
        if task == "change":  # only orders that are not sent can be changed
            order = dataclasses.replace(order, sent=False)
        self._open(order)
        self.customer: _Customer = getattr(self, f"_{task}")(draw, order)
        rules = [Step(Message(Role.SYSTEM, POLICY))] if self.config.declare else []
        return Opening([*rules, Step(Message(Role.USER, self.customer.request))], task)

    def _open(self, *orders: Order) -> None:
        """Opens the shop with these orders."""
        self.shop, self.calls, self.opened = Shop(*orders), 0, {order.number: order for order in orders}

    def step(self, message: Message) -> Feedback:
        if message.calls:
            self.calls += len(message.calls)
            results = [(call, *self.shop.call(call)) for call in message.calls]
            return Feedback([Step(Message(Role.TOOL, text, call_id=call.id), error) for call, text, error in results])
        if is_question(message.text) and self.customer.answers:
            return Feedback([Step(Message(Role.USER, self.customer.answers.pop(0)))])
        success = self.customer.satisfied(message.text)
        return Feedback(outcome=Outcome(float(success), success, "the assistant answered"))

    def _cancel(self, draw: random.Random, order: Order) -> _Customer:
        request = draw.choice([f"Please cancel order {order.number}.", f"I do not want order {order.number} any more."])
        done = lambda text: order.number in (self.shop.refunded if order.sent else self.shop.cancelled)
        return _Customer(request, ["Yes, please."], done)

    def _change(self, draw: random.Random, order: Order) -> _Customer:
        wanted = order.amount + draw.randint(1, 4)
        changed = lambda text: (
            self.shop.orders[order.number].amount == wanted and order.number not in self.shop.cancelled
        )
        if draw.random() < 0.4:
            return _Customer("Can you change my order?", [f"{order.number}, and {wanted} please."], changed)
        return _Customer(f"Make it {wanted} {order.thing}s in order {order.number}.", [], changed)

    def _ask(self, draw: random.Random, order: Order) -> _Customer:
        request = draw.choice([f"Is order {order.number} on its way?", f"What is in order {order.number}?"])
        return _Customer(request, [], lambda text: order.summary in text and self._is_untouched(order.number))

    def _no_tool_fits(self, draw: random.Random, order: Order) -> _Customer:
        request = draw.choice([f"Which {order.thing} suits a small room?", "Can you sing?"])
        return _Customer(request, [], lambda text: bool(text.strip()) and self.calls == 0)

    def _is_untouched(self, number: str) -> bool:
        same = self.shop.orders[number] == self.opened[number]
        return same and number not in self.shop.cancelled and number not in self.shop.refunded
