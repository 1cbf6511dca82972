"""Policy files: what they may say, and what is refused with its place."""

import pytest

from data.policy import read_policy
from data.toy_shop import TOOLS
from maverick_jax.errors import InputError


def test_the_shipped_policy_names_every_tool_of_the_shop():
    assert set(read_policy("package:toy_shop_policy").tools) == {tool.name for tool in TOOLS}


@pytest.mark.parametrize(("text", "says"), [
    ("tools: {a: {privelege: 1}}", "did you mean tools.a.privilege?"),
    ("tools: {a: {privilege: 5}}", "tools.a.privilege"),
    ("tools: {find: {after: [fnd]}}", "tools.find.after: no tool 'fnd'; did you mean find?"),
    ("tools: {a: {}}\ntransitions: {deny: [[a, b]]}", "transitions.deny.0: no tool 'b'"),
    ("tools: {a: {scope: {id: owned}}}", "owned requires `principal`"),
    ("tools: {a: {}}\nprincipal: {tool: b, argument: id}", "principal.tool: no tool 'b'"),
    ("tools: {}", "tools"),
    ("- a", "expected a mapping"),
])  # fmt: skip
def test_a_policy_that_cannot_be_is_refused(tmp_path, text, says):
    (tmp_path / "policy.yaml").write_text(text)
    with pytest.raises(InputError) as refused:
        read_policy(str(tmp_path / "policy.yaml"))
    assert says in str(refused.value) and "policy.yaml" in str(refused.value)


def test_a_policy_that_is_not_there_is_refused_with_the_nearest_name(tmp_path):
    (tmp_path / "rules.yaml").write_text("tools: {a: {}}")
    assert read_policy(str(tmp_path / "rules.yaml")).granted == 2
    with pytest.raises(InputError, match=r"no such file; did you mean rules\.yaml\?"):
        read_policy(str(tmp_path / "rule.yaml"))
    with pytest.raises(InputError, match="did you mean toy_shop_policy"):
        read_policy("package:toy_shop_polic")
