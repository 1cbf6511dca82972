"""The toy shop as an environment: correct and incorrect behavior, all kinds of calls, and its state."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.environments import ENVIRONMENTS, EnvironmentConfig, ToyShopConfig
from data.toy_shop import MAX_AMOUNT, TOOLS, Order, Shop
from maverick_jax.settings.descriptions import descriptions
from maverick_jax.text.chat import Message, Role, ToolCall

ORDER = Order("A123", "lamp", 2, 10, sent=False)
SENT = Order("A123", "lamp", 2, 10, sent=True)


def call(name, **arguments):
    return ToolCall(name, arguments)


def says(text):
    return Message(Role.ASSISTANT, text)


def calls(*made):
    return Message(Role.ASSISTANT, calls=made)


def of(task, sent=None):
    """An episode of the task with a sent or an unsent order, and the order."""
    environment = ToyShopConfig(tasks=(task,)).make()
    for seed in range(100):
        opening = environment.reset(seed)
        (order,) = environment.shop.orders.values()
        if sent is None or order.sent == sent:
            assert opening.task == task and [s.message.role for s in opening.steps] == [Role.SYSTEM, Role.USER]
            return environment, order
    raise AssertionError("no such order among 100")


def outcome(environment, *messages):
    for message in messages[:-1]:
        assert environment.step(message).outcome is None
    return environment.step(messages[-1]).outcome


def test_an_unsent_order_is_canceled():
    environment, order = of("cancel", sent=False)
    found = environment.step(calls(call("find_order", order=order.number)))
    assert [(s.message.role, s.message.text, s.error) for s in found.steps] == [(Role.TOOL, order.record, False)]
    assert outcome(environment, calls(call("cancel_order", order=order.number)), says("Done.")).success is True


def test_a_sent_order_is_refunded_after_the_customer_agrees():
    environment, order = of("cancel", sent=True)
    (refused,) = environment.step(calls(call("cancel_order", order=order.number))).steps
    assert refused.error and refused.message.text == f"Error: {order.number} is sent"
    (agreed,) = environment.step(says("It is sent. Shall I refund it?")).steps
    assert (agreed.message.role, agreed.message.text) == (Role.USER, "Yes, please.")
    refund = call("refund_order", order=order.number, amount=order.total)
    assert outcome(environment, calls(refund), says("You get it back.")).reward == 1.0


def test_a_question_that_the_customer_cannot_answer_ends_the_episode():
    environment, _ = of("cancel")
    ended = outcome(environment, says("Shall I?"), says("Are you sure?"))
    assert (ended.success, ended.reward) == (False, 0.0)


def test_an_amount_is_changed_to_the_wanted_one():
    environment, order = of("change")
    request = environment.customer.request + " ".join(environment.customer.answers)
    wanted = max(int(word.strip(".")) for word in request.replace("please", "").split() if word.strip(".").isdigit())
    assert not order.sent
    change = lambda amount: calls(call("change_amount", order=order.number, amount=amount))
    assert outcome(environment, change(wanted), says("Done.")).success is True
    environment, order = of("change")
    assert outcome(environment, change(wanted + 1), says("Done.")).success is False


def test_a_question_about_an_order_changes_nothing():
    environment, order = of("ask")
    assert outcome(environment, says(order.summary)).success is True
    environment, order = of("ask", sent=False)
    changed = calls(call("change_amount", order=order.number, amount=order.amount + 1))
    assert outcome(environment, changed, says(order.summary)).success is False


def test_an_episode_where_no_tool_fits_allows_no_call():
    environment, order = of("no_tool_fits")
    assert outcome(environment, says("None of my functions does that.")).success is True
    environment, order = of("no_tool_fits")
    assert outcome(environment, calls(call("find_order", order=order.number)), says("Sorry.")).success is False


def test_equal_seeds_give_equal_episodes_and_seeds_draw_all_tasks():
    openings = [ToyShopConfig().make().reset(seed) for seed in range(40)]
    assert openings == [ToyShopConfig().make().reset(seed) for seed in range(40)]
    assert {opening.task for opening in openings} == {"cancel", "change", "ask", "no_tool_fits"}


@pytest.mark.parametrize(
    ("order", "made", "result"),
    [
        (ORDER, call("find_order", order="a123"), "Error: no order a123"),
        (ORDER, call("find_orders", order="A123"), "Error: no function find_orders; there are find_order, "),
        (ORDER, call("find_order"), "Error: find_order takes order (string)"),
        (ORDER, call("find_order", order="A123", more=1), "Error: find_order takes order (string)"),
        (ORDER, call("find_order", order=123), "Error: find_order takes order (string)"),
        (ORDER, call("change_amount", order="A123", amount=True), "Error: change_amount takes order (string), amount"),
        (ORDER, call("change_amount", order="A123", amount=0), f"Error: an order has 1 to {MAX_AMOUNT}"),
        (ORDER, call("change_amount", order="A123", amount=10**4000), f"Error: an order has 1 to {MAX_AMOUNT}"),
        (ORDER, call("refund_order", order="A123", amount=20), "Error: A123 is not sent"),
        (SENT, call("refund_order", order="A123", amount=10), "Error: A123 cost 20"),
        (SENT, call("change_amount", order="A123", amount=3), "Error: A123 is sent"),
    ],
)
def test_refused_calls_change_nothing(order, made, result):
    shop = Shop(order)
    text, error = shop.call(made)
    assert error and text.startswith(result)
    assert shop.orders == {"A123": order} and not shop.cancelled and not shop.refunded


def test_a_refund_is_paid_once_and_a_canceled_order_is_gone():
    shop, refund = Shop(SENT), call("refund_order", order="A123", amount=20)
    assert [shop.call(refund), shop.call(refund)] == [("refunded", False), ("Error: A123 is refunded", True)]
    shop = Shop(ORDER)
    assert shop.call(call("cancel_order", order="A123")) == ("cancelled", False)
    assert shop.call(call("find_order", order="A123")) == ("Error: no order A123", True)


VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.lists(st.integers(), max_size=2)
NAMES = st.sampled_from([tool.name for tool in TOOLS]) | st.text(min_size=1, max_size=10)
ARGUMENTS = st.dictionaries(st.sampled_from(["order", "amount", "x"]), VALUES | st.just("A123"), max_size=3)


@given(st.lists(st.tuples(NAMES, ARGUMENTS), max_size=8), st.booleans())
def test_no_call_raises(made, sent):
    shop = Shop(Order.drawn(random.Random(0)), SENT if sent else ORDER)
    for name, arguments in made:
        text, error = shop.call(ToolCall(name, arguments))
        assert text and error == text.startswith("Error: ") and len(text) < 500


def test_every_field_is_described():
    for section in (EnvironmentConfig, *ENVIRONMENTS.members.values()):
        assert set(section.model_fields) <= set(descriptions(section))
