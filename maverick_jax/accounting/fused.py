"""FLOPs and rates of fused kernels, which a compiled program calls by name and does not show inside."""

import math
import re

from maverick_jax.accounting.hlo import Computation, Instruction, arrays_of

_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_SCORES = re.compile(r'"intermediate_tensor_shape":.*?"dimensions":\s*\[([^\]]*)\]')
_WINDOW = re.compile(r'"sliding_window_length":\s*"?(\d+)')
_PALLAS = re.compile(r"/(?:(splash_mha_(?:fwd|dq|dkv))_\w+|jit\((t?gmm)\))/pallas_call")
CUDNN = {"__cudnn$fmhaSoftmax": 2, "__cudnn$fmhaSoftmaxBackward": 5}
"""Matrix products over all scores: forward of queries and keys, and weights and values; backward those of the scores
again, of the weights' gradient and of three gradients."""
SPLASH = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}
"""The same; its kernels of the backward pass both compute the scores and the weights' gradient."""
MOSAIC, MEGABLOX = "mosaic_gpu_v2", ("gmm", "tgmm")
"""Grouped products. All Mosaic kernels of a program are."""
SHARES = {"__cudnn$fmhaSoftmax": 550 / 989.4, "__cudnn$fmhaSoftmaxBackward": 430 / 989.4, MOSAIC: 500 / 989.4}
"""Fractions of a data sheet's FLOP/s that kernels reach, on an H200: cuDNN attention 550 TFLOP/s forward and 430
backward; 500 are assumed of grouped products. Nothing is known of kernels on TPUs: they count as other products do."""


def target_of(instruction: Instruction) -> str:
    """The name of the kernel that an instruction calls; empty if it calls none."""
    found = _TARGET.search(instruction.text) if instruction.opcode == "custom-call" else None
    pallas = _PALLAS.search(instruction.op_name) if found else None
    return (pallas[1] or pallas[2]) if pallas else found[1] if found else ""


def fused_flops(computation: Computation, instruction: Instruction) -> float:
    """FLOPs of a kernel that is known, else 0. In attention, packed rows count as if each were one segment, as useful
    FLOPs do; in grouped products every row counts, even if it belongs to no expert."""
    target = target_of(instruction)
    shapes = [arrays_of(operand.result)[0][1] for operand in computation.operands(instruction)]
    if target in (MOSAIC, *MEGABLOX):
        return _grouped_flops(shapes[-2:], arrays_of(instruction.result)[0][1])
    if target in SPLASH:
        return 2.0 * SPLASH[target] * _pairs_of_splash(target, shapes, instruction.text) * shapes[2][-1]
    shape = _SCORES.search(instruction.text) if target in CUDNN else None
    if shape is None:
        return 0.0
    *rows, T, S = (int(n.strip(' "')) for n in shape[1].split(","))
    window = int(found[1]) if (found := _WINDOW.search(instruction.text)) else 0
    pairs = T * S if "CAUSAL" not in instruction.text else T * (T + 1) // 2
    if 0 < window < T:
        pairs = window * T - window * (window - 1) // 2
    return 2.0 * CUDNN[target] * math.prod(rows) * pairs * shapes[0][-1]


def _pairs_of_splash(target: str, shapes: list[tuple[int, ...]], text: str) -> int:
    """Scores that a kernel of splash attention computes, masked ones in its blocks included. Its operands begin with a
    table of blocks [1, of queries, of keys] and with q [...,N,T,H]; the table has as many blocks along the axis that
    the kernel sums over as one block of the other axis meets."""
    (_, *table), *rows, T = shapes[0], *shapes[2][:-1]
    phase = target.removeprefix("splash_mha_fwd").replace("splash_mha", "")
    queries, keys = (int(re.findall(rf"block_{axis}{phase}\W+(\d+)", text)[0]) for axis in ("q", "kv"))
    if target == "splash_mha_dkv":
        blocks = sum(min(table[0], T // queries - at // queries) for at in range(0, T, keys))
    else:
        blocks = sum(min(table[1], -(-(at + queries) // keys)) for at in range(0, T, queries))
    return math.prod(rows) * blocks * queries * keys


def _grouped_flops(operands: list[tuple[int, ...]], out: tuple[int, ...]) -> float:
    """Of rows [M, K] times weights of every expert, or of weight gradients [E, K, N] from rows [M, K] and [M, N]."""
    match [len(shape) for shape in (*operands, out)]:
        case [2, 3, 2]:
            return 2.0 * math.prod(out) * operands[0][1]
        case [2, 2, 3]:
            return 2.0 * operands[0][0] * math.prod(out[1:])
        case _:
            return 0.0
