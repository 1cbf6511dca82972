"""FLOPs of convolutions: TPU programs write all matrix products as such."""

import re

_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_WINDOW = re.compile(r"window=\{([^}]*)\}")

Shape = tuple[int, ...]


def convolution_flops(text: str, image: Shape, kernel: Shape, out: Shape) -> float:
    """FLOPs of a convolution of `image` with `kernel`, from its text: a multiplication and an addition for each element
    of the image under each element of the kernel, without padding and the holes of a dilated image. Batch dims of a
    matrix product are window dims whose kernel meets one element of the image in each place. Raises ValueError if the
    text says no dims."""
    if not (labels := _LABELS.search(text)):
        raise ValueError(f"a convolution without dims: {text[:200]}")
    of_image, of_kernel, of_out = (
        dict(zip(names, shape, strict=True)) for names, shape in zip(labels.groups(), (image, kernel, out), strict=True)
    )
    window = _window(text)
    products = of_out["b"] * of_out["f"] * of_kernel["i"]
    for dim in range(len(image) - 2):
        name = str(dim)
        each = {key: values[dim] for key, values in window.items()}
        products *= _meetings(of_image[name], of_kernel[name], of_out[name], **each)
    return 2.0 * products


def _window(text: str) -> dict[str, list[int]]:
    """Strides, dilations and low padding of each window dim; defaults where the text leaves them out."""
    found = _WINDOW.search(text)
    parts = dict(part.split("=") for part in found[1].split()) if found else {}
    numbers = {key: [int(n.split("_")[0]) for n in value.split("x")] for key, value in parts.items()}
    return {key: numbers[key] for key in ("stride", "pad", "lhs_dilate", "rhs_dilate") if key in numbers}


def _meetings(
    image: int, kernel: int, out: int, stride: int = 1, pad: int = 0, lhs_dilate: int = 1, rhs_dilate: int = 1
) -> int:
    """How often an element of the kernel meets one of the image along a dim."""
    places = (o * stride + k * rhs_dilate - pad for o in range(out) for k in range(kernel))
    return sum(0 <= place <= (image - 1) * lhs_dilate and place % lhs_dilate == 0 for place in places)
