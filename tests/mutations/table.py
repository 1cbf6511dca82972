"""Single mistakes in the code, each with tests that must fail because of it."""

import dataclasses
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Mutation:
    """One mistake: `old`, which occurs exactly once in `file`, becomes `new`."""

    id: str
    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    """Test files, or `FILE::TEST` for one test of a file."""

    def problems(self, root: pathlib.Path = ROOT) -> list[str]:
        """Why it cannot be run in the tree `root`; empty if it can."""
        path, found = root / self.file, []
        if not path.is_file():
            return [f"{self.id}: {self.file}: no such file"]
        if (count := path.read_text().count(self.old)) != 1:
            found.append(f"{self.id}: {self.file}: {self.old!r} occurs {count} times; expected once")
        for test in self.tests:
            name, _, function = test.partition("::")
            if not (root / name).is_file():
                found.append(f"{self.id}: {name}: no such test file")
            elif function and f"def {function}(" not in (root / name).read_text():
                found.append(f"{self.id}: {name}: no test {function}")
        return found


def _mutation(id: str, what: str, file: str, old: str, new: str, *tests: str) -> Mutation:
    return Mutation(id, what, file, old, new, tests)


STEP, WEIGHTING = "tests/train/test_step.py", "tests/train/objectives/distill/test_weighting.py"
ROWS, TRAJECTORIES = "tests/data/rows/", "tests/data/trajectories/"
STORE, RULES = "tests/maverick_jax/checkpoint/test_store.py", TRAJECTORIES + "filters/test_rules.py"
FORMATS, DRAW = TRAJECTORIES + "formats/test_formats.py", "tests/maverick_jax/ops/test_draw.py"
CHAT, HUGGINGFACE = "tests/maverick_jax/text/chat/", "tests/maverick_jax/huggingface/"
DISTILL, SELECTION = "train/objectives/distill/", "tests/train/trainable/test_selection.py"
OPS, LATENT = "tests/maverick_jax/ops/", "tests/maverick_jax/model/test_latent.py"
TILES, ROWS_OF_TILES = "maverick_jax/model/tiles.py", "tests/parity/test_pictures.py"

TRAIN = [
    _mutation(
        "A1",
        "the logged rate counts refused updates",
        "train/optimizers/base.py",
        "self.schedule(step - skipped)",
        "self.schedule(step)",
        f"{STEP}::test_the_logged_rate_is_the_one_applied_and_counts_updates_done",
    ),
    _mutation(
        "A2",
        "a gradient that is not finite is accepted",
        "train/faults/spikes.py",
        " & jnp.isfinite(grad_norm)",
        "",
        f"{STEP}::test_a_bad_step_changes_nothing",
    ),
    _mutation(
        "A5",
        "no bias correction of the second moment",
        "train/optimizers/adamw.py",
        "jnp.sqrt(v / (1 - b2**steps))",
        "jnp.sqrt(v)",
        "tests/train/optimizers/test_adamw.py::test_adam_equals_optax",
    ),
    _mutation(
        "A6",
        "the embedding decays",
        "train/optimizers/decay.py",
        '"router_bias", "embed"',
        '"router_bias"',
        "tests/train/optimizers/test_adamw.py::test_only_matrices_decay",
    ),
    _mutation(
        "A8",
        "wsd decays over a part of the steps after the warmup",
        "train/optimizers/schedule.py",
        "round(total_steps * decay_fraction)",
        "round(rest * decay_fraction)",
        "tests/train/optimizers/test_schedule.py",
    ),
    _mutation(
        "A9",
        "the warmup starts from 0",
        "train/optimizers/schedule.py",
        "optax.linear_schedule(peak / max(1, warmup_steps), peak",
        "optax.linear_schedule(0.0, peak",
        "tests/train/optimizers/test_schedule.py",
    ),
    _mutation(
        "A11",
        "adapters are scaled by alpha / sqrt(rank)",
        "maverick_jax/checkpoint/adapters.py",
        "else self.rank)",
        "else self.rank**0.5)",
        "tests/train/trainable/test_lora.py",
    ),
    _mutation(
        "A13",
        "shared experts have the role mlp",
        "maverick_jax/parameters.py",
        'config.intermediate_size, "shared")',
        'config.intermediate_size, "mlp")',
        f"{SELECTION}::test_the_role_of_every_parameter_of_the_model",
    ),
]
"""The step, optimizers, and what is trained."""

OBJECTIVES = [
    _mutation(
        "B1",
        "the cosine ramp is a sine",
        DISTILL + "weighting/base.py",
        "part = 0.5 - 0.5 * jnp.cos(jnp.pi * part)",
        "part = jnp.sin(0.5 * jnp.pi * part)",
        "tests/train/objectives/distill/test_objective.py::test_the_share_follows_its_schedule",
    ),
    _mutation(
        "B2",
        "an error below 0 lowers the doubt",
        DISTILL + "weighting/codistill.py",
        'jnp.maximum(means["error_ema"], 0.0)',
        'means["error_ema"]',
        WEIGHTING,
    ),
    _mutation(
        "B3",
        "TAID has no floor",
        DISTILL + "weighting/taid.py",
        'jnp.maximum(floor, state["interpolation"])',
        'state["interpolation"]',
        f"{WEIGHTING}::test_taid_has_a_floor_and_a_ceiling",
        f"{WEIGHTING}::test_taid",
    ),
    _mutation(
        "B4",
        "TAID's improvement has the other sign",
        DISTILL + "weighting/taid.py",
        "(last - now) / jnp.maximum",
        "(now - last) / jnp.maximum",
        f"{WEIGHTING}::test_taid",
    ),
    _mutation(
        "B5",
        "the magnitude's ratio has no upper limit",
        DISTILL + "weighting/magnitude.py",
        "jnp.clip(ratio, self.ratio_low, self.ratio_high)",
        "jnp.maximum(ratio, self.ratio_low)",
        WEIGHTING,
    ),
    _mutation(
        "B8",
        "l2 is relative to the student",
        DISTILL + "matching.py",
        "mean((s - t) ** 2) / square(t)",
        "mean((s - t) ** 2) / square(s)",
        "tests/train/objectives/distill/test_matching.py",
    ),
    _mutation(
        "B12",
        "the power of the confidence is ignored",
        DISTILL + "weighting/confidence.py",
        'controls["max_entropy"], 0.0) ** self.power',
        'controls["max_entropy"], 0.0)',
        f"{WEIGHTING}::test_confidence",
    ),
    _mutation(
        "B13",
        "averages are not corrected for their start",
        DISTILL + "weighting/averages.py",
        "{name: value / weight for",
        "{name: value for",
        f"{WEIGHTING}::test_magnitude",
    ),
]
"""Objectives."""

DATA = [
    _mutation(
        "C1",
        "a concatenated document's last token learns the next document's first",
        "data/rows/packing.py",
        "ends - begins, ends < edges[1:])",
        "ends - begins, ends <= edges[1:])",
        f"{ROWS}test_packing.py",
    ),
    _mutation(
        "C2",
        "a best-fitted document's last token learns the next document's first",
        "data/rows/packing.py",
        "(offset + piece_length < sizes[document])[order]",
        "(offset + piece_length <= sizes[document])[order]",
        f"{ROWS}test_packing.py",
    ),
    _mutation(
        "C3",
        "each epoch has the same order of rows",
        "data/rows/source_rows.py",
        'derive(self.seed, "rows", place.epoch)',
        'derive(self.seed, "rows", 0)',
        f"{ROWS}test_dataset.py",
    ),
    _mutation(
        "C4",
        "each epoch is cut at the same places",
        "data/rows/packing.py",
        "if self._seed is None or epoch == 0:",
        "if True:",
        f"{ROWS}test_packing.py::test_epochs_cut_in_different_places_unless_not_shuffled",
    ),
    _mutation(
        "C5",
        "a context that fills the row is repeated",
        "data/rows/windows.py",
        "if context > min(length * 3 // 4, length - 2) or",
        "if context > length - 2 or",
        f"{ROWS}test_windows.py",
    ),
    _mutation(
        "C6",
        "nothing is repeated inside a long turn",
        "data/rows/windows.py",
        "return border if border < at else earliest",
        "return min(border, at)",
        f"{ROWS}test_windows.py",
    ),
    _mutation(
        "C9",
        "rows left over go to the smallest remainders",
        "data/rows/mixture.py",
        "key=lambda i: counts[i] - shares[i] * MAX_BLOCK",
        "key=lambda i: shares[i] * MAX_BLOCK - counts[i]",
        f"{ROWS}test_mixture.py",
    ),
    _mutation(
        "C10",
        "a source's first row is taken for another of the source before it",
        "data/rows/mixture.py",
        'np.searchsorted(self._ends, at, "right")',
        'np.searchsorted(self._ends, at, "left")',
        f"{ROWS}test_mixture.py",
    ),
    _mutation(
        "C11", "orders ignore the seed", "data/order.py", "[str(seed), *map", '["0", *map', f"{ROWS}test_packing.py"
    ),
    _mutation(
        "C12",
        "held-out runs balance decisions",
        "data/rows/dataset.py",
        "[: train.begin.size].sum(axis=0)",
        ".sum(axis=0)",
        "tests/train/evaluation/test_decisions.py",
    ),
]
"""Documents, windows and mixtures in rows."""

RUNS = [
    _mutation(
        "D1",
        "a call without a result recovers a failure",
        "data/trajectories/actions.py",
        "if action.result is not None:",
        "if True:",
        f"{TRAJECTORIES}test_actions.py::test_a_call_without_a_result_recovers_nothing",
    ),
    _mutation(
        "D3",
        "a reward equal to the threshold fails",
        "data/trajectories/weights.py",
        "self.success if outcome.reward >= self.threshold",
        "self.success if outcome.reward > self.threshold",
        f"{TRAJECTORIES}test_kinds.py::test_weights_by_outcome",
    ),
    _mutation(
        "D6",
        "one unrecovered failure too many is allowed",
        "data/trajectories/filters/rules.py",
        "failures <= most or",
        "failures <= most + 1 or",
        RULES,
    ),
    _mutation(
        "D8",
        "the content's hash ignores failures",
        "data/trajectories/filters/duplicates.py",
        "for call in message.calls], step.error]",
        "for call in message.calls]]",
        RULES,
    ),
    _mutation(
        "D9",
        "keep_best rounds down",
        "data/trajectories/filters/apply.py",
        "math.ceil(fraction * len(ranks) - 1e-9)",
        "math.floor(fraction * len(ranks))",
        RULES,
    ),
    _mutation(
        "D10",
        "loss_weight of a message is ignored",
        "data/trajectories/meaning.py",
        'NUMBERS = ("weight", "loss_weight", ',
        'NUMBERS = ("weight", ',
        f"{FORMATS}::test_weights_of_single_messages",
    ),
    _mutation(
        "D11",
        "rewards of parallel calls are not summed",
        "data/trajectories/formats/adp.py",
        "reward=sum(given) if given else None",
        "reward=given[0] if given else None",
        TRAJECTORIES + "formats/test_adp.py",
    ),
    _mutation(
        "D12",
        "demonstrations are learned",
        "data/trajectories/formats/swe_agent.py",
        "weight = 0.0 if demonstrates and weight is None else weight",
        "weight = None if demonstrates and weight is None else weight",
        FORMATS,
    ),
    _mutation(
        "D13",
        "a capped balance loses its mean of 1",
        "data/trajectories/decisions.py",
        "(total - most * turns[capped].sum())",
        "total",
        "tests/train/evaluation/test_decisions.py",
    ),
    _mutation(
        "D14",
        "two values get one replacement",
        "data/trajectories/filters/scrub.py",
        "if (kind, found) not in self._taken:",
        "if True:",
        f"{TRAJECTORIES}filters/test_scrub.py",
    ),
]
"""Trajectories: failures, weights, filters, formats."""

STORAGE = [
    _mutation(
        "E1",
        "keep_every is ignored",
        "maverick_jax/checkpoint/copies.py",
        "if not (every and s % every == 0)",
        "if True",
        f"{STORE}::test_keep_and_keep_every",
    ),
    _mutation(
        "E14",
        "one checkpoint fewer is kept",
        "maverick_jax/checkpoint/copies.py",
        "steps[: -config.keep]",
        "steps[: 1 - config.keep or None]",
        f"{STORE}::test_keep_and_keep_every",
    ),
    _mutation(
        "E2",
        "a run whose checkpoints are all damaged starts anew",
        "maverick_jax/checkpoint/store.py",
        "if since == 0 and (candidates or self.set_aside()):",
        "if False:",
        f"{STORE}::test_no_intact_checkpoint_is_an_error_on_every_start",
    ),
    _mutation(
        "E4",
        "other contents of a saved step are dropped",
        "maverick_jax/checkpoint/store.py",
        'if self.meta(step)["arrays"] != sealed["arrays"]:',
        "if False:",
        f"{STORE}::test_saving_a_step_again",
    ),
    _mutation(
        "E5",
        "upcycled experts are equal copies",
        "maverick_jax/initialization/from_model.py",
        "np.where(beyond, 1, NOISE)",
        "np.where(beyond, 1, 0)",
        "tests/maverick_jax/initialization/test_from_model.py",
    ),
    _mutation(
        "E9",
        "an export merges adapters without alpha / rank",
        "maverick_jax/checkpoint/adapters.py",
        "np.float32(self.scale) * change",
        "change",
        "tests/train/trainable/test_lora.py",
    ),
    _mutation(
        "E11",
        "the scale of integers clips the largest",
        "maverick_jax/huggingface/quantize.py",
        "np.float32((2**bits - 1) / 2)",
        "np.float32(2**bits / 2)",
        f"{HUGGINGFACE}test_quantize.py",
    ),
    _mutation(
        "E12",
        "the export of a dense model tells vLLM of experts",
        "maverick_jax/huggingface/config.py",
        "config.interleave_moe_layer_step if any(moe) else 0",
        "config.interleave_moe_layer_step",
        f"{HUGGINGFACE}test_export.py::test_a_folder_has_what_vllms_loader_expects",
    ),
]
"""Checkpoints, other formats, first weights."""

TEXT = [
    _mutation(
        "F1",
        "one token more than top_k",
        "maverick_jax/ops/draw.py",
        "jnp.minimum(rules.top_k, V)",
        "jnp.minimum(rules.top_k + 1, V)",
        f"{DRAW}::test_the_rules_exclude_what_they_say",
    ),
    _mutation(
        "F10",
        "the token after a sum that meets top_p is kept",
        "maverick_jax/ops/draw.py",
        "share >= rules.top_p",
        "share > rules.top_p",
        f"{DRAW}::test_the_rules_exclude_what_they_say",
    ),
    _mutation(
        "F2",
        "<|eom|> does not end the text",
        "maverick_jax/inference/prompts.py",
        'TURN_ENDS = ("<|eot|>", "<|eom|>")',
        'TURN_ENDS = ("<|eot|>",)',
        "tests/maverick_jax/inference/test_answers.py::test_text_ends_at_a_stop_token",
    ),
    _mutation(
        "F12",
        "every step draws with the same noise",
        "maverick_jax/ops/draw.py",
        "jax.random.fold_in(jax.random.key(seed), i)",
        "jax.random.key(seed)",
        f"{DRAW}::test_each_row_draws_as_the_twin_does",
    ),
    _mutation(
        "F6",
        "<|eom|> does not end a reply",
        "maverick_jax/text/chat/reply.py",
        'STOPS = ("<|eot|>", "<|eom|>", ',
        'STOPS = ("<|eot|>", ',
        f"{CHAT}test_dialects.py",
    ),
    _mutation(
        "F7",
        "the type of a call is ignored",
        "maverick_jax/text/chat/json_calls.py",
        'if value.get("type", "function") != "function":',
        "if False:",
        f"{CHAT}test_dialects.py",
    ),
    _mutation(
        "F11",
        "negative numbers read positive",
        "maverick_jax/text/chat/pythonic.py",
        "return -number if isinstance(node.op, ast.USub) else number",
        "return number",
        f"{CHAT}test_dialects.py",
    ),
    _mutation(
        "F8",
        "results are not quoted",
        "maverick_jax/text/chat/dialects.py",
        "return values.write(text)",
        "return text",
        f"{CHAT}test_render.py",
    ),
    _mutation(
        "F9",
        "a token of two spans goes to the syntax",
        "maverick_jax/text/chat/render.py",
        "self.spans[i].kind is not Kind.CALL_SYNTAX), held[0])",
        "self.spans[i].kind is Kind.CALL_SYNTAX), held[0])",
        f"{CHAT}test_render.py",
    ),
]
"""Sampling and chat."""

_LOOKUP = """like = jnp.zeros_like(table, dtype={0})
    _, transpose = jax.vjp(lambda table: table.at[tokens].get(out_sharding=out), like)
    (dtable,) = transpose(dy.astype({0}))"""

PRECISION = [
    _mutation(
        "G1",
        "gradients of the embedding are summed in bfloat16",
        "maverick_jax/ops/lookup.py",
        _LOOKUP.format("jnp.float32"),
        _LOOKUP.format("jnp.bfloat16"),
        f"{OPS}test_lookup.py",
    ),
    _mutation(
        "G2",
        "gradients of gains and biases are summed in bfloat16",
        "maverick_jax/ops/affine.py",
        "(x.astype(jnp.float32) * _shared(gain, x.dtype)).astype(x.dtype)",
        "x * gain.astype(x.dtype)",
        f"{OPS}test_affine.py",
    ),
    _mutation(
        "G3",
        "1 / weight is rounded to bfloat16",
        "maverick_jax/ops/vocabulary.py",
        "(x.astype(jnp.float32) * scale)",
        "(x.astype(jnp.float32) * scale.astype(dhidden.dtype).astype(jnp.float32))",
        f"{OPS}test_ops.py::test_bfloat16_gradients_of_cross_entropy_are_not_all_too_large_or_too_small",
        f"{OPS}test_distillation.py::test_bfloat16_gradients_are_not_all_too_large_or_too_small",
    ),
    _mutation(
        "G4",
        "weight gradients are summed over devices in bfloat16",
        "maverick_jax/ops/collectives.py",
        "return vary(w.astype(jnp.float32), axes).astype(w.dtype)",
        "return vary(w, axes)",
        f"{OPS}test_ops.py::test_weight_gradients_are_summed_over_devices_in_float32",
    ),
    _mutation(
        "G5",
        "bfloat16 gradients are accumulated in bfloat16",
        "train/step.py",
        "lambda g: g.astype(jnp.float32)",
        "lambda g: g",
        f"{STEP}::test_gradients_of_bfloat16_parameters_are_summed_in_float32_over_microbatches",
    ),
    _mutation(
        "G6",
        "bfloat16 parameters are rounded to the nearest",
        "train/step.py",
        "return stochastic_round(new, key)",
        "return new.astype(x.dtype)",
        f"{STEP}::test_small_updates_of_bfloat16_parameters_arrive_on_average",
    ),
]
"""Sums in float32 where numbers are bfloat16."""

PICTURES = [
    _mutation(
        "P1",
        "a picture goes to the next row",
        TILES,
        "own = features.reshape(len(embeddings), -1, features.shape[-1])",
        "own = jnp.roll(features.reshape(len(embeddings), -1, features.shape[-1]), 1, axis=0)",
        f"{ROWS_OF_TILES}::test_loss_and_gradients_of_samples_with_pictures_equal_the_public_model",
    ),
    _mutation(
        "P2",
        "a row's features are taken from the last to the first",
        TILES,
        "jnp.where(is_image, place, 0)[..., None]",
        "jnp.where(is_image, own.shape[1] - 1 - place, 0)[..., None]",
        f"{ROWS_OF_TILES}::test_loss_and_gradients_of_samples_with_pictures_equal_the_public_model",
    ),
    _mutation(
        "P3",
        "padding tiles come before a row's own",
        TILES,
        "row[:count] = pixel_values[end - count : end]",
        "row[len(row) - count :] = pixel_values[end - count : end]",
        "tests/maverick_jax/model/test_tiles.py::test_tiles_of_a_batch_go_to_their_rows",
    ),
    _mutation(
        "P4",
        "documents of a row see each other",
        "maverick_jax/model/inputs.py",
        '(batch["positions"], batch["segment_ids"])',
        '(batch["positions"], (batch["segment_ids"] > 0).astype("int32"))',
        f"{ROWS_OF_TILES}::test_a_packed_row_gives_what_its_samples_give_alone",
    ),
    _mutation(
        "P5",
        "pixels are normalized as Meta's reference does",
        TILES,
        'pixel_table("bfloat16")',
        'pixel_table("float32")',
        "tests/maverick_jax/model/test_tiles.py::test_pixels_are_normalized_on_the_device_as_on_the_host_to_the_bit",
    ),
    _mutation(
        "P6",
        "the projector is trained as a part of the adapter",
        "maverick_jax/parameters.py",
        '(None, "vision_embed"), "projector")',
        '(None, "vision_embed"), "adapter")',
        f"{SELECTION}::test_encoder_adapter_and_projector_are_trained_apart",
    ),
    _mutation(
        "P7",
        "rows with more patch tokens than features pass",
        "train/batches.py",
        "bad = (wanted > room * P) | (wanted % P > 0)",
        "bad = wanted % P > 0",
        "tests/train/test_batches.py::test_a_batch_has_a_feature_for_each_patch_token",
    ),
]
"""Pictures in rows."""

LATENTS = [
    _mutation(
        "L1",
        "latents get a pass less than they need",
        "maverick_jax/model/latent.py",
        "filled, length=with_gradient)[0]",
        "filled, length=with_gradient - 1)[0]",
        f"{LATENT}::test_as_many_passes_as_latents_equal_the_sequential_loop",
    ),
    _mutation(
        "L2",
        "passes suffice for one span of a segment that has two",
        "train/latents.py",
        'found = place[(rows["tokens"] == token) & (rows["segment_ids"] > 0)]',
        'found = place[(rows["tokens"] == token) & (np.roll(rows["tokens"], -1, axis=1) == token)]',
        "tests/train/test_latents.py::test_latents_are_counted_over_all_spans_of_a_segment_and_not_in_padding",
    ),
    _mutation(
        "L3",
        "a latent reads the hidden state of the segment before its own",
        "maverick_jax/model/latent.py",
        "goes_on = place(earlier(ids, self.rules) == ids)",
        "goes_on = place(earlier(ids, self.rules) >= 0)",
        f"{LATENT}::test_a_latent_that_begins_a_segment_reads_zeros",
    ),
    _mutation(
        "L4",
        "the places of latents are learned where their message has a weight",
        "data/trajectories/weights.py",
        "(TokenKind.HEADER, TokenKind.TOOLS, *NEVER)",
        "(TokenKind.HEADER, TokenKind.TOOLS)",
        f"{TRAJECTORIES}test_latent_thoughts.py::test_places_of_latents_are_never_learned",
    ),
    _mutation(
        "L5",
        "a link out of a sidecar is followed",
        "maverick_jax/huggingface/extensions.py",
        "require_inside(folder / TENSORS, model)",
        "assert model",
        f"{HUGGINGFACE}test_extensions.py::test_a_malformed_sidecar_is_refused",
    ),
    _mutation(
        "L6",
        "a teacher computes fewer latents than the rows have, in silence",
        "train/batches.py",
        "[LatentCheck(model.latent, key) for key, model in self.models.items()]",
        "[LatentCheck(self.config.model.latent)]",
        "tests/runs/test_plain_students.py::test_rows_with_more_latents_than_the_teacher_computes_are_refused",
    ),
]
"""Latent thoughts."""

MUTATIONS = [*TRAIN, *OBJECTIVES, *DATA, *RUNS, *STORAGE, *TEXT, *PRECISION, *PICTURES, *LATENTS]
