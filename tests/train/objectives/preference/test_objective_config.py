"""What the preference objective takes from the rest of a config, and what it refuses."""

import pytest

from maverick_jax.errors import InputError
from train.config_files import read_config, resolved
from train.objectives import Preference
from train.objectives.preference.reference import CopyReference


def read(*words):
    return read_config("preference_tiny", words)


def test_routers_are_frozen_unless_the_config_says_what_is_trained():
    config = read()
    assert config.trainable.parameters and "router" not in config.trainable.parameters
    assert "experts" in config.trainable.parameters and config.objective.balance_loss is False
    routed = read("trainable.parameters=[router]")
    assert routed.trainable.parameters == ("router",) and routed.objective.balance_loss is True


def in_run(trained=("norms",), adapters=False, start="start", **section):
    return Preference.model_validate({"kind": "preference", **section}).in_run(start, trained, adapters)


def test_the_reference_follows_from_what_is_trained():
    assert in_run().reference == CopyReference(path="start")
    assert in_run(trained=(), adapters=True).reference.kind == "adapters_off"
    assert in_run(adapters=True).reference == CopyReference(path="start")
    assert in_run(pair_loss={"kind": "simpo"}).reference.kind == "none"
    assert in_run(reference={"path": "other"}).reference.path == "other"


def test_a_resolved_config_read_again_is_the_same(tmp_path):
    import yaml

    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(resolved(read())))
    assert read_config(str(path)) == read()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["objective.reference={kind: none}"], r"reference.kind: none with pair_loss.kind: sigmoid; expected copy, ad"),
        (["objective.pair_loss={kind: simpo}"], r"reference.kind: copy with pair_loss.kind: simpo; expected none"),
        (["objective.pair_loss.gamma=1"], r"objective.pair_loss.gamma: "),
        (["model.init_from=null", "objective={kind: pretrain}"], r"pretrain does not tell a pair's sides apart"),
    ],
)
def test_what_does_not_fit_is_refused(words, why):
    with pytest.raises(InputError, match=why):
        read(*words)


def test_what_does_not_fit_the_run_is_refused():
    with pytest.raises(InputError, match=r"objective.reference.path: required, because model.init_from names no model"):
        in_run(start=None)
    with pytest.raises(InputError, match=r"objective.reference.kind: adapters_off, but norms would change with it"):
        in_run(adapters=True, reference={"kind": "adapters_off"})
    with pytest.raises(InputError, match=r"objective.reference.kind: adapters_off, but trainable.lora is null"):
        in_run(trained=(), reference={"kind": "adapters_off"})


def test_the_preference_objective_needs_pairs():
    with pytest.raises(InputError, match=r"objective.kind: preference needs a source of preferences \(kind"):
        read_config("pretrain_tiny", ["objective={kind: preference, pair_loss: {kind: simpo}}"])
