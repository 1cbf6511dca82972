"""A fictional shop: its orders, and the functions that serve its customers.

`data.trajectories.toy_shop` generates trajectories with it, `data.environments.toy_shop` lets a model act in it, and
`data.tasks.toy_shop_orders` asks about its orders.
"""

import dataclasses
import random
from collections.abc import Callable
from typing import Any

from maverick_jax.text.chat import Tool, ToolCall, values

POLICY = ("You serve the customers of a small shop. Look an order up before you change it. An order that is sent can "
          "be refunded and not cancelled. Where no function fits, say so.")  # fmt: skip
GOODS = ("lamp", "chair", "kettle", "rug", "clock", "vase", "stool", "mirror")
NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana")
MAX_AMOUNT = 100
"""Maximum number of things in one order."""
_TYPES = {"string": str, "integer": int}


def _tool(name: str, description: str, **parameters: str) -> Tool:
    properties = {key: {"type": kind} for key, kind in parameters.items()}
    return Tool(name, description, {"type": "object", "properties": properties, "required": list(parameters)})


TOOLS = (
    _tool("find_order", "One order by its number", order="string"),
    _tool("cancel_order", "Cancel an order that is not sent", order="string"),
    _tool("refund_order", "Pay back an order that was sent", order="string", amount="integer"),
    _tool("change_amount", "How many of a thing an order has", order="string", amount="integer"),
)
_PARAMETERS = {tool.name: {name: schema["type"] for name, schema in tool.parameters["properties"].items()}
               for tool in TOOLS}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Order:
    """One order."""

    number: str
    thing: str
    amount: int
    price: int
    """Price of one thing."""
    sent: bool
    note: str = ""
    """A note on the order, which anyone may have written; empty: there is none."""

    @classmethod
    def drawn(cls, draw: random.Random) -> "Order":
        number = f"{draw.choice('ABCD')}{draw.randrange(100, 1000)}"
        return cls(number, draw.choice(GOODS), draw.randint(1, 5), draw.randint(5, 60), draw.random() < 0.5)

    @property
    def total(self) -> int:
        return self.amount * self.price

    @property
    def record(self) -> str:
        """The JSON that `find_order` returns."""
        noted = {"note": self.note} if self.note else {}
        return values.write({"order": self.number, "thing": self.thing, "amount": self.amount, "price": self.price,
                             "sent": self.sent, **noted})  # fmt: skip

    @property
    def summary(self) -> str:
        """The description for customers."""
        return f"{self.amount} x {self.thing}, {'sent' if self.sent else 'not sent yet'}."


class Refused(Exception):
    """The shop does not carry out a call; the text is the reason."""


class Shop:
    """The state of the shop. Calls read and change it."""

    def __init__(self, *orders: Order):
        self.orders = {order.number: order for order in orders}
        self.cancelled: set[str] = set()
        self.refunded: set[str] = set()

    def call(self, call: ToolCall) -> tuple[str, bool]:
        """Carries out any call. Returns its result, or an error message, and whether it is an error."""
        try:
            return self._done(call), False
        except Refused as refusal:
            return f"Error: {refusal}", True

    def _done(self, call: ToolCall) -> str:
        functions: dict[str, Callable[..., str]] = {
            "find_order": self._find,
            "cancel_order": self._cancel,
            "refund_order": self._refund,
            "change_amount": self._change,
        }
        if call.name not in functions:
            raise Refused(f"no function {call.name[:40]}; there are {', '.join(functions)}")
        return functions[call.name](**_checked(call))

    def _order(self, number: str) -> Order:
        if number not in self.orders or number in self.cancelled:
            raise Refused(f"no order {number[:40]}")
        return self.orders[number]

    def _find(self, order: str) -> str:
        return self._order(order).record

    def _cancel(self, order: str) -> str:
        if self._order(order).sent:
            raise Refused(f"{order} is sent")
        self.cancelled.add(order)
        return "cancelled"

    def _refund(self, order: str, amount: int) -> str:
        found = self._order(order)
        if not found.sent:
            raise Refused(f"{order} is not sent")
        if order in self.refunded:
            raise Refused(f"{order} is refunded")
        if amount != found.total:
            raise Refused(f"{order} cost {found.total}")
        self.refunded.add(order)
        return "refunded"

    def _change(self, order: str, amount: int) -> str:
        found = self._order(order)
        if found.sent:
            raise Refused(f"{order} is sent")
        if not 1 <= amount <= MAX_AMOUNT:
            raise Refused(f"an order has 1 to {MAX_AMOUNT}")
        self.orders[order] = dataclasses.replace(found, amount=amount)
        return f"amount {amount}"


def _checked(call: ToolCall) -> dict[str, Any]:
    """The arguments of a call of a known function. Raises Refused unless names and types match the function."""
    types = _PARAMETERS[call.name]
    fits = call.arguments.keys() == types.keys() and all(
        type(call.arguments[name]) is _TYPES[kind] for name, kind in types.items()
    )
    if not fits:
        raise Refused(f"{call.name} takes {', '.join(f'{name} ({kind})' for name, kind in types.items())}")
    return dict(call.arguments)
