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

    def compute(image: te.Tensor) -> te.Tensor:
        patches_x, channels = int(image.shape[2]) // p, int(image.shape[3])
        span = p * channels  # bytes of a patch that are adjacent in the image

        def for_cpu(b: te.Var, r: te.Var, c: te.Var) -> te.Tensor:
            x = r % patches_x * p + c % span // channels
            return image[b, r // patches_x * p + c // span, x, c % channels]

        def for_cuda(b: te.Var, r: te.Var, c: te.Var) -> te.Tensor:
            # The byte of the image's row, which TVM sees to be adjacent also within a short vector.
            x = r % patches_x * span + c % span
            return image[b, r // patches_x * p + c // span, x // channels, x % channels]

        element = for_cuda if is_cuda(target) else for_cpu
        return te.compute((batch, rows, columns), element, "y")

    return emit_compute(bb, "patchify", compute, inputs, {"vector": p * 3})
