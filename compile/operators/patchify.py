"""`patchify`: an image as rows of patches (docs/integer-semantics.md section 3.1)."""

from __future__ import annotations

from tvm import relax, te
from tvm.target import Target

from intswin.compile.operators.expressions import emit_compute
from intswin.compile.targets import is_cuda
from intswin.models.integer_graph import Node


def emit(
    bb: relax.BlockBuilder, node: Node, inputs: list[relax.Expr], batch: int, target: Target
) -> relax.Expr:
    """Emit image uint8 (B, H, W, 3) -> (B, H/p * W/p, p*p*3), columns by (ky, kx, channel)."""
    p = int(node.attrs["patch"])
    rows, columns = node.out.shape
    if is_cuda(target):
        return _emit_cuda(bb, p, inputs[0], (batch, rows, columns))

    def compute(image: te.Tensor) -> te.Tensor:
        patches_x, channels = int(image.shape[2]) // p, int(image.shape[3])
        span = p * channels  # bytes of a patch that are adjacent in the image
        return te.compute(
            (batch, rows, columns),
            lambda b, r, c: image[
                b,
                r // patches_x * p + c // span,
                r % patches_x * p + c % span // channels,
                c % channels,
            ],
            "y",
        )

    return emit_compute(bb, "patchify", compute, inputs, {"vector": p * 3})


def _emit_cuda(
    bb: relax.BlockBuilder, p: int, image: relax.Expr, shape: tuple[int, int, int]
) -> relax.Expr:
    """The same from the image's rows as plain bytes: TVM then sees what is adjacent, and how far.

    A CUDA vector is shorter than what is adjacent, and pixels of three bytes do not divide it.
    """
    batch, height, width, channels = (int(extent) for extent in image.ty.shape)
    span, patches_x = p * channels, width // p
    lines = bb.emit(relax.op.reshape(image, (batch, height, width * channels)))

    def compute(lines: te.Tensor) -> te.Tensor:
        return te.compute(
            shape,
            lambda b, r, c: lines[
                b, r // patches_x * p + c // span, r % patches_x * span + c % span
            ],
            "y",
        )

    return emit_compute(bb, "patchify", compute, [lines], {"vector": span})
