"""Convolutions count as the matrix products that they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from maverick_jax.accounting.convolutions import convolution_flops

IN_EACH_PLACE = "window={size=4x8x1 stride=3x7x1 lhs_dilate=4x8x1}, dim_labels=012bf_01oi2->012bf"
PADDED = "window={size=4x8x5 stride=4x8x1 pad=3_3x7_7x4_4 lhs_dilate=3x7x1}, dim_labels=01bf2_012oi->012fb"


@pytest.mark.parametrize(
    ("text", "image", "kernel", "out", "products"),
    [
        ("dim_labels=bf_io->bf", (32, 64), (64, 16), (32, 16), 32 * 64 * 16),
        ("dim_labels=fb_oi->bf", (64, 32), (16, 64), (32, 16), 32 * 64 * 16),
        # heads as a window dim over an image of one: each head once
        (
            "window={size=1x8 pad=0_0x7_7 rhs_reversal=0x1}, dim_labels=0bf1_i1o0->0b1f",
            *((4, 128, 64, 1), (64, 8, 16, 1), (4, 128, 8, 16), 4 * 128 * 8 * 64 * 16),
        ),
        # batch dims of 4 rows and 8 heads, scores of 5 x 32 queries and 64 keys, as a v5p program writes them
        (IN_EACH_PLACE, (4, 8, 5, 32, 16), (4, 8, 64, 16, 1), (4, 8, 5, 32, 64), 4 * 8 * 5 * 32 * 64 * 16),
        (PADDED, (4, 8, 64, 16, 1), (4, 8, 5, 32, 16), (4, 8, 5, 32, 64), 4 * 8 * 5 * 32 * 64 * 16),
    ],
)
def test_products_are_counted_once(text, image, kernel, out, products):
    assert convolution_flops(f"%a, %b), {text}, metadata={{}}", image, kernel, out) == 2 * products


def test_a_convolution_counts_what_lies_under_its_kernel():
    """The twin multiplies ones: each result is the number of its products."""
    window = {"window_strides": (2, 1), "padding": ((1, 2), (0, 3)), "lhs_dilation": (2, 1), "rhs_dilation": (1, 2)}
    image, kernel = jnp.ones((3, 6, 5, 7)), jnp.ones((4, 3, 7, 9))
    out = lax.conv_general_dilated(image, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **window)
    text = "window={size=4x3 stride=2x1 pad=1_2x0_3 lhs_dilate=2x1 rhs_dilate=1x2}, dim_labels=b01f_01io->b01f"
    assert convolution_flops(text, image.shape, kernel.shape, out.shape) == 2 * np.sum(np.asarray(out, np.float64))


def test_a_convolution_without_dims_is_an_error():
    with pytest.raises(ValueError, match="without dims"):
        convolution_flops("%a, %b)", (1, 1), (1, 1), (1, 1))


def test_the_compilers_count_is_the_same():
    """XLA leaves padding out too."""
    image, kernel = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32), jax.ShapeDtypeStruct((3, 3, 4, 5), jnp.float32)
    convolve = lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    cost = jax.jit(convolve).lower(image, kernel).cost_analysis()
    text = "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f"
    assert convolution_flops(text, image.shape, kernel.shape, (2, 8, 8, 5)) == cost["flops"]
