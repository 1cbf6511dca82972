"""FLOPs of fused kernels, read off the instructions that call them."""

import pytest

from maverick_jax.accounting.compiled import flops, paced_flops
from maverick_jax.accounting.devices import MATRIX_SHARE
from maverick_jax.accounting.hlo import Program

TEXT = """
ENTRY %main (q: bf16[2,64,6,32], k: bf16[2,64,2,32]) -> bf16[2,6,64,32] {
  %q = bf16[2,64,6,32]{3,2,1,0} parameter(0)
  %k = bf16[2,64,2,32]{3,2,1,0} parameter(1)
  ROOT %call = (bf16[2,6,64,32]{3,1,2,0}, f32[2,6,64]{2,1,0}, u8[0]{0}) custom-call(%q, %k, %k), \
custom_call_target="TARGET", backend_config={"cudnn_fmha_backend_config": {"intermediate_tensor_shape": \
{"element_type": "BF16", "dimensions": ["2", "6", "64", "64"], "tuple_shapes": []}, "mask_type": "MASK", \
"sliding_window_length": WINDOW}}
}
"""


@pytest.mark.parametrize(
    ("target", "mask", "window", "products", "pairs", "rate"),
    [
        ("__cudnn$fmhaSoftmax", "CAUSAL", 0, 2, 64 * 65 / 2, 550),
        ("__cudnn$fmhaSoftmax", "PADDING_CAUSAL", 3, 2, 1 + 2 + 62 * 3, 550),
        ("__cudnn$fmhaSoftmaxBackward", "NO_MASK", 0, 5, 64 * 64, 430),
        ("another", "CAUSAL", 0, 0, 0, 0),
    ],
)
def test_flops_of_cudnn_attention(target, mask, window, products, pairs, rate):
    text = TEXT.replace("TARGET", target).replace("MASK", mask).replace("WINDOW", str(window))
    program = Program.parse(text, lambda loop: 1)
    done = 2 * products * 2 * 6 * pairs * 32
    assert flops(program) == done
    ((computation, _),) = program.scheduled()
    paced = paced_flops(program, computation, computation.root)
    assert paced == pytest.approx(done * MATRIX_SHARE * 989.4 / rate if rate else 0)
