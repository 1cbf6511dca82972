"""Questions about orders of the toy shop. Each conversation already contains the call that finds the order."""

import random
from typing import Annotated, Literal

from pydantic import Field

from data.graders.base import Grade
from data.graders.matching import exact
from data.tasks.base import Example, Task, TaskInfo
from data.toy_shop import POLICY, TOOLS, Order
from maverick_jax.text.chat import Conversation, Message, Reply, Role, ToolCall


class ToyShopOrders(Task):
    """`kind: toy_shop_orders`: questions about the content and the shipment of an order. `trajectory_tiny` learns to
    answer them."""

    kind: Literal["toy_shop_orders"] = "toy_shop_orders"
    """Questions about orders of the toy shop."""
    count: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Number of generated examples."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the generated examples."""

    @property
    def info(self) -> TaskInfo:
        return TaskInfo("generated from a seed by maverick-jax", "Apache-2.0")

    def examples(self) -> list[Example]:
        return [self._example(number) for number in range(self.count)]

    def _example(self, number: int) -> Example:
        draw = random.Random(f"toy_shop_orders {self.seed} {number}")
        order = Order.drawn(draw)
        request = draw.choice([f"Is order {order.number} on its way?", f"What is in order {order.number}?"])
        messages = (
            Message(Role.SYSTEM, POLICY),
            Message(Role.USER, request),
            Message(Role.ASSISTANT, calls=(ToolCall("find_order", {"order": order.number}),)),
            Message(Role.TOOL, order.record),
        )
        return Example(str(number), Conversation(messages, TOOLS), (order.summary,))

    def grade(self, example: Example, reply: Reply) -> Grade:
        if reply.calls:
            return Grade(0.0, f"called {reply.calls[0].name[:80]} instead of answering")
        return exact(reply.text, example.references)
