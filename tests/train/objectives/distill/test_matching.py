"""Matching a teacher's internals: tapped layers, their distances, and the projections that are trained with the
model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maverick_jax.checkpoint import names
from maverick_jax.checkpoint.store import CheckpointConfig, CheckpointStore
from maverick_jax.errors import InputError
from maverick_jax.model.attention import Positions
from maverick_jax.model.inputs import Inputs
from maverick_jax.model.layers import Taps
from maverick_jax.model.transformer import Maverick
from maverick_jax.pretrained import load_pretrained, save_pretrained
from maverick_jax.sharding import ShardingRules, single_device_mesh
from tests.helpers import tiny
from train.config_files import read_config
from train.objectives import Distill
from train.objectives.base import Context
from train.objectives.distill.matching import HiddenMatching, Matching, RouterMatching
from train.objectives.distill.weighting import Schedule
from train.state import abstract_state, init_state
from train.step import train_step
from train.teachers.references import find_references

STUDENT = tiny.model_config(num_hidden_layers=3, no_rope_layer_interval=2)  # one period of two layers, and one more
TEACHER = tiny.model_config(hidden_size=48, num_hidden_layers=5, no_rope_layer_interval=2)  # two periods and one more
OBJECTIVE = Distill(
    teacher="anywhere",
    weighting=Schedule(start=0.5),
    hidden=HiddenMatching(layers=((1, 2), (2, 4)), projection=True, weight=2.0),
    router=RouterMatching(layers=((1, 1), (1, 3)), weight=3.0),
)
HEADS = OBJECTIVE.heads(STUDENT, {"teacher": TEACHER})


@functools.cache
def made(config, seed: int) -> Maverick:
    with jax.set_mesh(single_device_mesh()):
        return jax.jit(lambda: Maverick(config, tiny.RULES, rngs=nnx.Rngs(seed)))()


# ---- taps ------------------------------------------------------------------------------------------------------------


def one_by_one(model: Maverick, inputs: Inputs):
    """The slow twin: every layer's output and router logits, from running the layers one by one without scan or
    remat."""
    config, length = model.config, len(model.config.period)
    places = Positions.of(config, inputs, tiny.RULES)
    x, outputs, routers = model.embed_inputs(inputs), [], []
    for i in range(config.num_hidden_layers):
        period, place = divmod(i, length)
        if period < config.num_periods:
            layer = jax.tree.map(lambda leaf, period=period: leaf[period], model.periods).layers[place]
        else:
            layer = model.tail.layers[place]
        x, routed = layer(x, places, inputs.segment_ids > 0)
        outputs.append(x)
        routers.append(None if routed is None else routed.logits)
    return outputs, routers


@pytest.mark.parametrize(
    ("changes", "hidden", "router"),
    [
        ({"num_hidden_layers": 5, "no_rope_layer_interval": 2, "remat": "full"}, (4, 0, 3), (3, 1)),
        ({"num_hidden_layers": 3}, (0, 2), (1,)),  # shorter than a period
        ({"num_hidden_layers": 2, "no_rope_layer_interval": 1, "num_local_experts": 0}, (1, 0), ()),
    ],
)
def test_taps_equal_the_outputs_of_single_layers(changes, hidden, router):
    config = tiny.model_config(**changes)
    model, fields = made(config, 3), tiny.batch(config, rows=2)
    inputs = [fields[name][0] for name in ("tokens", "positions", "segment_ids")]
    with jax.set_mesh(single_device_mesh()):
        inputs = Inputs(*(jax.device_put(x, tiny.RULES("batch", "length")) for x in inputs))
        found = jax.jit(lambda m, x: m.tapped(x, Taps(hidden, router)))(model, inputs)
        last, stats = jax.jit(lambda m, x: m.hidden(x))(model, inputs)
        outputs, routers = jax.jit(one_by_one)(model, inputs)
    assert len(found.layers) == len(hidden) and len(found.routers) == len(router)
    for i, x in zip(hidden, found.layers, strict=True):
        np.testing.assert_allclose(x, outputs[i], atol=1e-5, err_msg=str(i))
    for i, x in zip(router, found.routers, strict=True):
        assert x.dtype == jnp.float32
        np.testing.assert_allclose(x, routers[i], atol=1e-5, err_msg=str(i))
    np.testing.assert_array_equal(found.hidden, last)
    jax.tree.map(np.testing.assert_array_equal, found.stats, stats)


def test_without_taps_the_scan_returns_nothing_more():
    """The scan over periods returns only the residual stream, four sums per router, and the tapped arrays."""
    config = tiny.model_config(hidden_size=48, num_hidden_layers=5, no_rope_layer_interval=2, remat="full")
    with jax.set_mesh(single_device_mesh()):
        model = jax.eval_shape(lambda: Maverick(config, tiny.RULES, rngs=nnx.Rngs(0)))
        tokens = tiny.placed(tiny.batch(config, rows=2))["tokens"][0]

        def given_back(taps):
            program = jax.make_jaxpr(lambda model, tokens: model.tapped(Inputs(tokens), taps))(model, tokens)
            (scan,) = [eqn for eqn in program.eqns if eqn.primitive.name == "scan"]
            return sorted(v.aval.shape for v in scan.outvars)

        least = [(2, 1), (2, 1), (2, 1), (2, 1, 8), (2, 24, 48)]
        assert given_back(Taps()) == given_back(Taps(hidden=(4,))) == least
        assert given_back(Taps(hidden=(3, 1), router=(1,))) == sorted([*least, (2, 2, 24, 48), (2, 2, 24, 8)])


# ---- distances -------------------------------------------------------------------------------------------------------


def slow_distances(section: Matching, ours, theirs, heads, weights):
    """The slow twin of `Matching.distances`: NumPy, double precision, token by token."""
    flat = lambda arrays: [np.asarray(x, np.float64).reshape(-1, x.shape[-1]) for x in arrays]
    weights, found = np.asarray(weights, np.float64).reshape(-1), {}
    if section.hidden:
        pairs, total = section.hidden.layers, 0.0
        for (s, t), x, y in zip(pairs, flat(ours.layers), flat(theirs.layers), strict=True):
            x = x @ np.asarray(heads[f"hidden_{s}_{t}"][...], np.float64) if section.hidden.projection else x
            for w, a, b in zip(weights, x, y, strict=True):
                cosine = 1 - a @ b / np.sqrt((a @ a) * (b @ b))
                total += w * (cosine if section.hidden.kind == "cosine" else (a - b) @ (a - b) / (b @ b))
        found["hidden_loss"] = total / len(pairs)
    if section.router:
        total, softmax = 0.0, lambda x: np.exp(x) / np.exp(x).sum()
        for x, y in zip(flat(ours.routers), flat(theirs.routers), strict=True):
            for w, p, q in zip(weights, map(softmax, y), map(softmax, x), strict=True):
                total += w * (p * np.log(p / q)).sum()
        found["router_divergence"] = total / len(ours.routers)
    return found


def invented(section: Matching, dtype="float32"):
    """Random internals of both models, [2, 3, ...]."""
    from maverick_jax.model.transformer import Tapped

    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    some = lambda width: tuple(draw(2, 3, width).astype(dtype) for _ in range(2))
    routers = lambda: tuple(draw(2, 3, 4) for _ in range(2))
    wide = 5 if section.hidden.projection else 6
    ours = Tapped(draw(2, 3, 6), None, some(wide), routers())
    theirs = Tapped(draw(2, 3, 6), None, some(6), routers())
    heads = {f"hidden_{s}_{t}": nnx.Param(draw(5, 6), axes=("embed", None)) for s, t in section.hidden.layers}
    return ours, theirs, heads, jnp.asarray(rng.uniform(0, 2, (2, 3)), jnp.float32)


@pytest.mark.parametrize("kind", ["cosine", "l2"])
@pytest.mark.parametrize("projection", [False, True])
def test_distances_equal_the_slow_twin(kind, projection):
    section = Matching(
        HiddenMatching(kind=kind, layers=((0, 1), (2, 0)), projection=projection),
        RouterMatching(layers=((0, 0), (1, 1))),
    )
    ours, theirs, heads, weights = invented(section)
    with jax.set_mesh(single_device_mesh()):
        found = jax.jit(lambda *x: section.distances(*x, tiny.RULES))(ours, theirs, heads, weights)
    expected = slow_distances(section, ours, theirs, heads, weights)
    assert found.keys() == expected.keys() == section.weights().keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def test_gradients_equal_differences_and_do_not_reach_the_teacher():
    section = Matching(OBJECTIVE.hidden.model_copy(update={"kind": "l2"}), OBJECTIVE.router)
    ours, theirs, heads, weights = invented(section)
    with jax.set_mesh(single_device_mesh()):
        total = jax.jit(lambda *x: sum(section.distances(*x, weights, tiny.RULES).values()))
        of_ours, of_theirs, of_heads = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(ours, theirs, heads)
    assert all(float(jnp.abs(x).max()) == 0 for x in jax.tree.leaves(of_theirs))
    slow = lambda ours, heads: sum(slow_distances(section, ours, theirs, heads, weights).values())
    rng, step = np.random.default_rng(1), 1e-4
    bumped, slope = [], 0.0
    for tree, grads in (((ours.layers, ours.routers), (of_ours.layers, of_ours.routers)), (heads, of_heads)):
        leaves, structure = jax.tree.flatten(tree)
        way = [rng.normal(size=x.shape) for x in leaves]
        slope += sum((w * np.asarray(g, np.float64)).sum() for w, g in zip(way, jax.tree.leaves(grads), strict=True))
        move = lambda sign, leaves=leaves, way=way: [
            np.asarray(x, np.float64) + sign * step * w for x, w in zip(leaves, way, strict=True)
        ]
        bumped.append([jax.tree.unflatten(structure, move(sign)) for sign in (1, -1)])
    values = [
        slow(ours._replace(layers=layers, routers=routers), heads)
        for (layers, routers), heads in zip(*bumped, strict=True)
    ]
    np.testing.assert_allclose((values[0] - values[1]) / (2 * step), slope, rtol=1e-4)


def test_equal_internals_have_distance_zero_also_in_bfloat16():
    for kind in ("cosine", "l2"):
        section = Matching(HiddenMatching(kind=kind, layers=((0, 0), (1, 1))), RouterMatching())
        ours, _, heads, weights = invented(section, "bfloat16")
        with jax.set_mesh(single_device_mesh()):
            found = section.distances(ours, ours, heads, weights, tiny.RULES)
        np.testing.assert_allclose([found["hidden_loss"], found["router_divergence"]], 0, atol=1e-5)


# ---- in a train step -------------------------------------------------------------------------------------------------


PARTS = {"optimizer": tiny.OPTIMIZER.build(tiny.STEPS, STUDENT), "objective": OBJECTIVE}
STATE = {"config": STUDENT, "rules": tiny.RULES, "heads": HEADS, **PARTS}
INIT, STEP = jax.jit(functools.partial(init_state, **STATE)), jax.jit(functools.partial(train_step, **PARTS))
OWN_RULES = ShardingRules(embed=None, heads=None, kv_heads=None)
PLAIN = OBJECTIVE.model_copy(update={"hidden": None, "router": None})


def teacher_of() -> dict[str, Maverick]:
    return {"teacher": jax.jit(lambda: Maverick(TEACHER, OWN_RULES, rngs=nnx.Rngs(2)))()}


def two_steps(microbatches: int = 1):
    """Metrics and arrays after two updates on the current mesh, as NumPy."""
    state, teacher, found = INIT(0), teacher_of(), []
    for i in range(2):
        state, metrics = STEP(state, tiny.placed(tiny.batch(STUDENT, i, microbatches=microbatches)), teacher)
        moments = {name: np.asarray(x) for name, x in names.flatten(state.opt_state).items() if "/mu/" in name}
        norm = lambda of, moments=moments: np.sqrt(sum((x**2).sum() for name, x in moments.items() if of in name))
        metrics |= {"moments": norm("/"), "moments_of_heads": norm("/heads/")}
        found.append({name: np.asarray(x) for name, x in metrics.items()})
    return found, {name: np.asarray(x) for name, x in names.flatten(state).items()}


@pytest.fixture(scope="module")
def expected():
    with jax.set_mesh(single_device_mesh()):
        return two_steps()


def assert_same(found, expected):
    for got, wanted in zip(found[0], expected[0], strict=True):
        for name in ("loss", "divergence", "hidden_loss", "router_divergence", "grad_norm"):
            np.testing.assert_allclose(got[name], wanted[name], rtol=1e-4, err_msg=name)
    for name in (
        n for n in expected[1] if "/mu/" in n
    ):  # the first moments keep the size of the gradients, which Adam's steps do not
        wanted = expected[1][name]
        np.testing.assert_allclose(found[1][name], wanted, atol=1e-4 * max(1e-2, np.abs(wanted).max()), err_msg=name)


@pytest.mark.slow
def test_heads_are_trained_like_the_model(expected):
    metrics, arrays = expected
    mine = sorted(name for name in arrays if "heads/" in name)
    pairs = ("hidden_1_2", "hidden_2_4")
    places = ("heads", "opt_state/1/mu/heads", "opt_state/1/nu/heads")
    assert mine == sorted(f"{place}/{pair}" for place in places for pair in pairs)
    for pair in pairs:
        assert arrays[f"heads/{pair}"].shape == (32, 48)
        assert np.abs(arrays[f"opt_state/1/mu/heads/{pair}"]).max() > 0
    assert 0 < metrics[1]["hidden_loss"] < metrics[0]["hidden_loss"] and metrics[0]["router_divergence"] > 0


@pytest.mark.slow
def test_loss_and_gradient_norm_include_matching_and_heads(expected):
    """They equal those of the objective without matching plus the slow twin of the distances."""
    with jax.set_mesh(single_device_mesh()):
        state, teacher, batch = INIT(0), teacher_of(), tiny.placed(tiny.batch(STUDENT, 0))
        totals, taps = OBJECTIVE.totals(batch), OBJECTIVE.matching.taps(STUDENT, TEACHER)

        @jax.jit
        def seen(state, teacher, batch):
            one = jax.tree.map(lambda x: x[0], batch)
            context = Context(state.step, {}, {"teacher": teacher}, state.heads)
            losses = [objective.loss(state.model, one, totals, context)[0] for objective in (OBJECTIVE, PLAIN)]
            return losses, *(m.tapped(Inputs.of(one), t) for m, t in zip((state.model, teacher), taps, strict=True))

        (found, without), ours, theirs = seen(state, teacher["teacher"], batch)
    slow = slow_distances(OBJECTIVE.matching, ours, theirs, state.heads, batch["loss_weights"])
    weight, metrics = float(totals["weight"]), expected[0][0]
    for name, value in slow.items():
        np.testing.assert_allclose(metrics[name], value / weight, rtol=1e-4, err_msg=name)
    added = (2 * slow["hidden_loss"] + 3 * slow["router_divergence"]) / weight
    np.testing.assert_allclose(float(found) - float(without), added, rtol=1e-3)
    # the first moments after one step are a tenth of the gradient, clipped to a norm of 1
    assert metrics["grad_norm"] > 1 and metrics["moments_of_heads"] > 0.01
    np.testing.assert_allclose(metrics["moments"], 0.1, rtol=1e-4)


@pytest.mark.slow
def test_microbatches_on_a_mesh_give_the_same_result(expected, mesh_of):
    """This includes a teacher with its own sharding rules."""
    with mesh_of(fsdp=2, expert=2, tensor=2):
        spec = names.flatten(jax.eval_shape(INIT, 0).heads)["hidden_1_2"].sharding.spec
        assert spec == tiny.RULES.storage("embed", None) != (None, None)  # created sharded
        assert_same(two_steps(microbatches=2), expected)


def test_an_objective_without_matching_has_no_heads():
    assert PLAIN.heads(STUDENT, {"teacher": TEACHER}) == ()
    assert PLAIN.matching.taps(STUDENT, TEACHER) == (Taps(), Taps())
    with jax.set_mesh(single_device_mesh()):
        parts = STATE | {"objective": PLAIN, "heads": ()}
        state = jax.eval_shape(functools.partial(init_state, **parts), 0)
        assert not [name for name in names.flatten(state) if "heads" in name]


@pytest.mark.slow
def test_a_restored_state_continues_to_the_bit(tmp_path):
    with jax.set_mesh(single_device_mesh()):
        teacher, batches = teacher_of(), [tiny.placed(tiny.batch(STUDENT, i)) for i in range(2)]
        state, _ = STEP(INIT(0), batches[0], teacher)
        store = CheckpointStore(tmp_path / "checkpoints", CheckpointConfig())
        meta = {"model": STUDENT.model_dump(mode="json")}
        store.save(1, names.flatten(state), meta, wait=True)
        whole, _ = STEP(state, batches[1], teacher)
        target = abstract_state(jax.sharding.get_mesh(), **STATE)
        restored = names.unflatten(target, store.restore(names.flatten(target))[1])
        again, _ = STEP(restored, batches[1], teacher)
        for name, value in names.flatten(whole).items():
            np.testing.assert_array_equal(names.flatten(again)[name], value, err_msg=name)
        store.close()
        # a checkpoint is loaded as the model alone
        model = load_pretrained(tmp_path)
        assert names.flatten(model).keys() == names.flatten(state.model).keys()


# ---- from a config ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    root = tmp_path_factory.mktemp("teachers")
    dense, few = tiny.model_config(num_local_experts=0), tiny.model_config(num_local_experts=4)
    kinds = {"wide": TEACHER, "dense": dense, "few": few}
    with jax.set_mesh(single_device_mesh()):
        for name, config in kinds.items():
            save_pretrained(made(config, 5), root / name)
    return root


def run_config(teacher, objective: str, *overrides):
    model = f"model={STUDENT.model_dump(mode='json')}".replace("'", '"').replace("None", "null")
    model = model.replace("True", "true").replace("False", "false")
    override = f"objective={{kind: distill, teacher: {teacher}, {objective}}}"
    return read_config("pretrain_tiny", [model, override, "data.sequence_length=16", *overrides])


@pytest.mark.parametrize(
    ("teacher", "objective", "message"),
    [
        ("wide", "hidden: {layers: [[0, 0]]}", r"hidden.projection: the student is 32 wide, the teacher 48: set it to"),
        (
            "wide",
            "hidden: {layers: [[3, 0]], projection: true}",
            r"hidden.layers: the student has no layer 3; .* 0 to 2",
        ),
        ("few", "hidden: {layers: [[0, 4]]}", r"hidden.layers: the teacher has no layer 4; its layers are 0 to 3"),
        ("wide", "router: {}", r"router.layers: .* layers 1 of the student, layers 1, 3 of the teacher; exp"),
        ("wide", "router: {layers: [[1, 2]]}", r"router.layers: layer 2 of the teacher is dense; .* layers 1, 3"),
        ("wide", "router: {layers: [[1, 99]]}", r"router.layers: the teacher has no layer 99"),
        (
            "few",
            "router: {layers: [[1, 1]]}",
            r"router: the student has 8 experts, the teacher 4; expected equal numbers",
        ),
        ("dense", "router: {}", r"router: the teacher has no mixture of experts; expected null"),
    ],
)
def test_models_that_cannot_be_compared_are_refused(teachers, teacher, objective, message):
    with pytest.raises(InputError, match="objective." + message):
        find_references(run_config(teachers / teacher, objective))


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("hidden: {layers: []}", "objective.hidden.layers"),
        ("hidden: {}", "objective.hidden.layers: required"),
        ("hidden: {layers: [[0, 0], [0, 0]]}", r"\[0, 0\] is given twice"),
        ("hidden: {layers: [[0, 0]], kind: cosin}", "did you mean cosine"),
        ("hidden: {layers: [[0, -1]]}", "objective.hidden.layers"),
        ("router: {weight: 0}", "objective.router.weight"),
        ("targets: {path: there}, router: {}", "router: stored targets contain none; expected null"),
    ],
)
def test_a_bad_section_is_refused(objective, message):
    with pytest.raises(InputError, match=message):
        run_config("anywhere", objective)


def test_plan_counts_the_heads(teachers):
    from launch.plan import plan

    hidden = "hidden: {layers: [[0, 0], [1, 3]], projection: true}"
    mesh = "mesh={data: 1, fsdp: 2, expert: 1, tensor: 1}"
    found = plan(run_config(teachers / "wide", hidden, mesh))
    numbers = 2 * 32 * 48
    assert found["bytes_per_device"]["heads"] == numbers // 2 * 4 * 4  # in halves: weights, gradients, two moments
    plain = plan(run_config(teachers / "wide", "hidden: null", mesh))
    assert "heads" not in plain["bytes_per_device"]
    assert found["checkpoints"]["bytes"] - plain["checkpoints"]["bytes"] == numbers * 12


def test_a_run_keeps_its_projections():
    kept = lambda **changes: OBJECTIVE.model_copy(update=changes).pinned()
    assert kept() == kept(router=None) != kept(hidden=None)
