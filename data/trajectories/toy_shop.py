"""The shipped trajectories of a made-up toy shop: `python -m data.trajectories.toy_shop > FILE.jsonl`.

Orders are found, changed, cancelled and refunded; some calls are refused, and made good or given up; some questions
need no tool, some no tool fits. Equal seeds give equal runs.
"""

import dataclasses
import random
from collections.abc import Callable

from data.trajectories.formats import ours
from data.trajectories.trajectory import Outcome, Provenance, Step, Trajectory
from maverick_jax.text.chat import Message, Role, Tool, ToolCall, values

RUNS, SEED = 60, 5
POLICY = ("You serve the customers of a small shop. Look an order up before you change it. An order that is sent can "
          "be refunded and not cancelled. Where no function fits, say so.")  # fmt: skip
GOODS = ("lamp", "chair", "kettle", "rug", "clock", "vase", "stool", "mirror")
NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana")


def _tool(name: str, description: str, **parameters: str) -> Tool:
    properties = {key: {"type": kind} for key, kind in parameters.items()}
    return Tool(name, description, {"type": "object", "properties": properties, "required": list(parameters)})


TOOLS = (
    _tool("find_order", "One order by its number", order="string"),
    _tool("cancel_order", "Cancel an order that is not sent", order="string"),
    _tool("refund_order", "Pay back an order that was sent", order="string", amount="integer"),
    _tool("change_amount", "How many of a thing an order has", order="string", amount="integer"),
)


@dataclasses.dataclass(frozen=True)
class _Order:
    """What the shop knows of one."""

    number: str
    thing: str
    amount: int
    price: int
    sent: bool

    @property
    def shown(self) -> str:
        return values.write({"order": self.number, "thing": self.thing, "amount": self.amount, "price": self.price,
                             "sent": self.sent})  # fmt: skip


class _Run:
    """One run being written."""

    def __init__(self, draw: random.Random):
        self.draw = draw
        self.steps = [Step(Message(Role.SYSTEM, POLICY))]
        number = f"{draw.choice('ABCD')}{draw.randrange(100, 1000)}"
        self.order = _Order(number, draw.choice(GOODS), draw.randint(1, 5), draw.randint(5, 60), draw.random() < 0.5)

    def user(self, *choices: str) -> None:
        self.steps.append(Step(Message(Role.USER, self.draw.choice(choices))))

    def says(self, *choices: str) -> None:
        self.steps.append(Step(Message(Role.ASSISTANT, self.draw.choice(choices))))

    def calls(self, name: str, result: str, *, error: bool = False, said: str = "", **arguments) -> None:
        self.steps.append(Step(Message(Role.ASSISTANT, said, calls=(ToolCall(name, arguments),))))
        self.steps.append(Step(Message(Role.TOOL, result), error=error))

    def finds(self) -> _Order:
        """The order is looked up; sometimes first with a number that is none."""
        number = self.order.number
        if self.draw.random() < 0.3:
            wrong = number[1:] if self.draw.random() < 0.5 else number.lower()
            self.calls("find_order", f"Error: no order {wrong}", error=True, order=wrong)
        self.calls("find_order", self.order.shown, order=number)
        return self.order


def _cancel(run: _Run) -> bool:
    run.user(f"Please cancel order {run.order.number}.", f"I do not want order {run.order.number} any more.")
    order = run.finds()
    if order.sent:
        total = order.amount * order.price
        run.says(f"Order {order.number} is sent. I can refund {total}. Shall I?")
        run.user("Yes, please.", "Do that.")
        if run.draw.random() < 0.5:
            run.calls("refund_order", f"Error: {order.number} cost {total}", error=True, order=order.number,
                      amount=order.price)  # fmt: skip
            if run.draw.random() < 0.25:
                run.says("I cannot refund it now. I am sorry.")
                return False
        run.calls("refund_order", "refunded", order=order.number, amount=total)
        run.says(f"You get {total} back.", f"Done: {total} will be paid back.")
        return True
    run.calls("cancel_order", "cancelled", said="It is not sent yet.", order=order.number)
    run.says(f"Order {order.number} is cancelled.", f"I have cancelled the {order.thing}.")
    return True


def _change(run: _Run) -> bool:
    wanted = run.order.amount + run.draw.randint(1, 4)
    if run.draw.random() < 0.4:
        run.user("I need more of what I ordered.", "Can you change my order?")
        run.says(f"Which order is it, and how many {run.order.thing}s do you want?")
        run.user(f"{run.order.number}, and {wanted} please.")
    else:
        run.user(f"Make it {wanted} {run.order.thing}s in order {run.order.number}.")
    order = run.finds()
    if order.sent:
        run.calls("change_amount", f"Error: {order.number} is sent", error=True, order=order.number, amount=wanted)
        run.says(f"Order {order.number} is sent and cannot be changed.")
        return False
    run.calls("change_amount", f"amount {wanted}", order=order.number, amount=wanted)
    run.says(f"You now get {wanted}.", f"Order {order.number} has {wanted} {order.thing}s now.")
    return True


def _ask(run: _Run) -> bool:
    run.user(f"Is order {run.order.number} on its way?", f"What is in order {run.order.number}?")
    order = run.finds()
    run.says(f"{order.amount} x {order.thing}, {'sent' if order.sent else 'not sent yet'}.")
    return True


def _no_tool_fits(run: _Run) -> bool:
    run.user(f"Which {run.order.thing} suits a small room?", "Can you sing?", "Please change my address.")
    run.says("None of my functions does that. I can find, change, cancel and refund orders.")
    return True


def _no_tool_needed(run: _Run) -> bool:
    name = run.draw.choice(NAMES)
    run.user(f"Hello, I am {name}.", "Thank you!")
    run.says(f"Hello {name}. How can I help?" if name in run.steps[-1].message.text else "You are welcome.")
    return True


TASKS: tuple[Callable[[_Run], bool], ...] = (_cancel, _change, _ask, _cancel, _change, _no_tool_fits, _no_tool_needed)


def runs(count: int = RUNS, seed: int = SEED) -> list[Trajectory]:
    """`count` runs, of the tasks in turn; every fifth goes on with a second task."""
    made = []
    for number in range(count):
        run = _Run(random.Random(seed * 100_000 + number))
        task = TASKS[number % len(TASKS)]
        success = task(run)
        if number % 5 == 4:
            success &= run.draw.choice(TASKS[:3])(run)
        provenance = Provenance(format="toy_shop", id=f"shop-{number}", task=task.__name__.strip("_"))
        made.append(Trajectory(run.steps, TOOLS, Outcome(float(success), success), provenance))
    return made


if __name__ == "__main__":
    for run in runs():
        print(ours.write(run))
