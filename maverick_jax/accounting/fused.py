"""FLOPs and rates of fused kernels, which a compiled program calls by name and does not show inside."""

import math
import re

from maverick_jax.accounting.hlo import Computation, Instruction, arrays_of

_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_SCORES = re.compile(r'"intermediate_tensor_shape":.*?"dimensions":\s*\[([^\]]*)\]')
_WINDOW = re.compile(r'"sliding_window_length":\s*"?(\d+)')
PRODUCTS = {"__cudnn$fmhaSoftmax": 2, "__cudnn$fmhaSoftmaxBackward": 5}
"""Matrix products over all scores: forward of queries and keys, and weights and values; backward those of the scores
again, of the weights' gradient and of three gradients."""
SHARES = {"__cudnn$fmhaSoftmax": 550 / 989.4, "__cudnn$fmhaSoftmaxBackward": 430 / 989.4}
"""Fractions of a data sheet's FLOP/s that kernels reach: cuDNN attention on an H200, 550 TFLOP/s forward and 430
backward."""


def target_of(instruction: Instruction) -> str:
    """The name of the kernel that an instruction calls; empty if it calls none."""
    found = _TARGET.search(instruction.text) if instruction.opcode == "custom-call" else None
    return found[1] if found else ""


def fused_flops(computation: Computation, instruction: Instruction) -> float:
    """FLOPs of a kernel that is known, else 0. Packed rows count as if each were one segment, as useful FLOPs do."""
    target = target_of(instruction)
    shape = _SCORES.search(instruction.text) if target in PRODUCTS else None
    if shape is None:
        return 0.0
    *rows, T, S = (int(n.strip(' "')) for n in shape[1].split(","))
    window = int(found[1]) if (found := _WINDOW.search(instruction.text)) else 0
    pairs = T * S if "CAUSAL" not in instruction.text else T * (T + 1) // 2
    if 0 < window < T:
        pairs = window * T - window * (window - 1) // 2
    (_, queries), *_ = arrays_of(computation.operands(instruction)[0].result)
    return 2.0 * PRODUCTS[target] * math.prod(rows) * pairs * queries[-1]
