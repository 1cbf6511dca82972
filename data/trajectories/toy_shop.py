"""Generates the shipped trajectories of the toy shop: `python -m data.trajectories.toy_shop > FILE.jsonl`.

Orders are found, changed, canceled and refunded. Some calls fail, and the assistant recovers or gives up. Some requests
need no tool, and for some no tool fits. Equal seeds give equal trajectories.
"""

import random
from collections.abc import Callable

from data.toy_shop import NAMES, POLICY, TOOLS, Order, Shop
from data.trajectories.formats import ours
from data.trajectories.trajectory import Outcome, Provenance, Step, Trajectory
from maverick_jax.text.chat import Message, Role, ToolCall

COUNT, SEED = 60, 5


class _Story:
    """One trajectory being written."""

    def __init__(self, draw: random.Random):
        self.draw = draw
        self.steps = [Step(Message(Role.SYSTEM, POLICY))]
        self.order = Order.drawn(draw)
        self.open()

    def open(self) -> None:
        """Begins a new task, with the order in its initial state."""
        self.shop = Shop(self.order)

    def user(self, *choices: str) -> None:
        self.steps.append(Step(Message(Role.USER, self.draw.choice(choices))))

    def says(self, *choices: str) -> None:
        self.steps.append(Step(Message(Role.ASSISTANT, self.draw.choice(choices))))

    def calls(self, name: str, *, said: str = "", refused: str = "", **arguments) -> None:
        """Adds a call and its result, which is the shop's, or the error `refused`."""
        call = ToolCall(name, arguments)
        result, error = (f"Error: {refused}", True) if refused else self.shop.call(call)
        self.steps.append(Step(Message(Role.ASSISTANT, said, calls=(call,))))
        self.steps.append(Step(Message(Role.TOOL, result), error=error))

    def finds(self) -> Order:
        """Looks the order up, sometimes first with a wrong number."""
        number = self.order.number
        if self.draw.random() < 0.3:
            self.calls("find_order", order=number[1:] if self.draw.random() < 0.5 else number.lower())
        self.calls("find_order", order=number)
        return self.order


def _cancel(story: _Story) -> bool:
    story.user(f"Please cancel order {story.order.number}.", f"I do not want order {story.order.number} any more.")
    order = story.finds()
    if order.sent:
        story.says(f"Order {order.number} is sent. I can refund {order.total}. Shall I?")
        story.user("Yes, please.", "Do that.")
        if story.draw.random() < 0.5:
            # refused even if the price of one thing is the total, because the shipped trajectories must not change
            why = f"{order.number} cost {order.total}"
            story.calls("refund_order", refused=why, order=order.number, amount=order.price)
            if story.draw.random() < 0.25:
                story.says("I cannot refund it now. I am sorry.")
                return False
        story.calls("refund_order", order=order.number, amount=order.total)
        story.says(f"You get {order.total} back.", f"Done: {order.total} will be paid back.")
        return True
    story.calls("cancel_order", said="It is not sent yet.", order=order.number)
    story.says(f"Order {order.number} is cancelled.", f"I have cancelled the {order.thing}.")
    return True


def _change(story: _Story) -> bool:
    wanted = story.order.amount + story.draw.randint(1, 4)
    if story.draw.random() < 0.4:
        story.user("I need more of what I ordered.", "Can you change my order?")
        story.says(f"Which order is it, and how many {story.order.thing}s do you want?")
        story.user(f"{story.order.number}, and {wanted} please.")
    else:
        story.user(f"Make it {wanted} {story.order.thing}s in order {story.order.number}.")
    order = story.finds()
    if order.sent:
        story.calls("change_amount", order=order.number, amount=wanted)
        story.says(f"Order {order.number} is sent and cannot be changed.")
        return False
    story.calls("change_amount", order=order.number, amount=wanted)
    story.says(f"You now get {wanted}.", f"Order {order.number} has {wanted} {order.thing}s now.")
    return True


def _ask(story: _Story) -> bool:
    story.user(f"Is order {story.order.number} on its way?", f"What is in order {story.order.number}?")
    order = story.finds()
    story.says(order.summary)
    return True


def _no_tool_fits(story: _Story) -> bool:
    story.user(f"Which {story.order.thing} suits a small room?", "Can you sing?", "Please change my address.")
    story.says("None of my functions does that. I can find, change, cancel and refund orders.")
    return True


def _no_tool_needed(story: _Story) -> bool:
    name = story.draw.choice(NAMES)
    story.user(f"Hello, I am {name}.", "Thank you!")
    story.says(f"Hello {name}. How can I help?" if name in story.steps[-1].message.text else "You are welcome.")
    return True


TASKS: tuple[Callable[[_Story], bool], ...] = (_cancel, _change, _ask, _cancel, _change, _no_tool_fits, _no_tool_needed)


def generate(count: int = COUNT, seed: int = SEED) -> list[Trajectory]:
    """Generates `count` trajectories. Tasks take turns; every fifth trajectory has a second task."""
    made = []
    for number in range(count):
        story = _Story(random.Random(seed * 100_000 + number))
        task = TASKS[number % len(TASKS)]
        success = task(story)
        if number % 5 == 4:
            story.open()
            success &= story.draw.choice(TASKS[:3])(story)
        provenance = Provenance(format="toy_shop", id=f"shop-{number}", task=task.__name__.strip("_"))
        made.append(Trajectory(story.steps, TOOLS, Outcome(float(success), success), provenance))
    return made


if __name__ == "__main__":
    for trajectory in generate():
        print(ours.write(trajectory))
