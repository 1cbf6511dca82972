"""FLOPs of fused kernels, read off the instructions that call them."""

import pytest

from maverick_jax.accounting.compiled import flops, flops_of, kernels, paced_flops
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


OF_A_TPU = """
ENTRY %main (q: bf16[2,6,1024,64], k: bf16[2,2,1024,64]) -> bf16[2,6,1024,64] {
  %q = bf16[2,6,1024,64]{3,2,1,0} parameter(0)
  %k = bf16[2,2,1024,64]{3,2,1,0} parameter(1)
  %next = s8[TABLE]{2,1,0} constant({...})
  %call = (f32[256,64]{1,0}, bf16[2,6,1024,64]{3,2,1,0}) custom-call(%next, %next, %q, %k, %k), \
custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_qPHASE\\": 256, \\"block_kvPHASE\\": 128, \\"block_kvPHASE_compute\\": 128}"
}}, metadata={op_name="jit(f)/shard_map/vmap(static_sparsity_splash)/splash_mha_KIND_segmented/pallas_call"}
  ROOT %out = bf16[2,6,1024,64]{3,2,1,0} get-tuple-element(%call), index=1
}
"""


@pytest.mark.parametrize(
    ("kind", "table", "products", "blocks"),
    [
        ("fwd", "1,4,8", 2, 2 + 4 + 6 + 8),
        ("dq", "1,4,3", 3, 2 + 3 + 3 + 3),
        ("dkv", "1,4,8", 4, 4 + 4 + 3 + 3 + 2 + 2 + 1 + 1),
        ("dkv", "1,2,8", 4, 2 + 2 + 2 + 2 + 2 + 2 + 1 + 1),
    ],
)
def test_flops_of_splash_attention(kind, table, products, blocks):
    """Of whole blocks; the compiler prints the call on three lines."""
    phase = "" if kind == "fwd" else f"_{kind}"
    text = OF_A_TPU.replace("TABLE", table).replace("PHASE", phase).replace("KIND", kind)
    program = Program.parse(text)
    assert kernels(program) == {f"splash_mha_{kind}": 1}
    assert program.computations["main"].root.name == "out", "what follows the call is read"
    assert flops(program) == 2 * products * 2 * 6 * blocks * 256 * 128 * 64


GROUPED = """
ENTRY %main (sizes: s32[16], x: bf16[512,256], y: bf16[512,384], w: bf16[16,256,384]) -> bf16[16,256,384] {
  %sizes = s32[16]{0} parameter(0)
  %x = bf16[512,256]{1,0} parameter(1)
  %y = bf16[512,384]{1,0} parameter(2)
  %w = bf16[16,256,384]{2,1,0} parameter(3)
  %there = bf16[512,384]{1,0} custom-call(%sizes, %x, %w), custom_call_target="mosaic_gpu_v2"
  %back = bf16[512,256]{1,0} custom-call(%sizes, %y, %w), custom_call_target="mosaic_gpu_v2"
  %megablox = bf16[16,256,384]{2,1,0} custom-call(%sizes, %x, %y), custom_call_target="tpu_custom_call", \
metadata={op_name="jit(f)/transpose(jvp(experts))/jit(tgmm)/pallas_call"}
  %other = f32[512]{0} custom-call(%x), custom_call_target="mosaic_gpu_v2"
  ROOT %dw = bf16[16,256,384]{2,1,0} custom-call(%sizes, %sizes, %sizes, %x, %y), custom_call_target="mosaic_gpu_v2"
}
"""


def test_flops_of_grouped_products():
    program = Program.parse(GROUPED)
    ((computation, _),) = program.scheduled()
    calls = [i for i in computation.instructions if i.opcode == "custom-call"]
    one = 2 * 512 * 256 * 384
    assert {i.name: flops_of(program, computation, i) for i in calls} == {
        "there": one, "back": one, "dw": one, "megablox": one, "other": 0}  # fmt: skip
    assert paced_flops(program, computation, calls[0]) == pytest.approx(one * MATRIX_SHARE * 989.4 / 500)
