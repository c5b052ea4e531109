"""DCNv3's forward pass in Triton, for GPUs on a machine without a CUDA toolkit.

Same contract as `ops_dcnv3.dcnv3` (InternImage, Wang et al., CVPR 2023, section 3.1). The backward pass recomputes the
pure-PyTorch core from the saved input, offset and mask. Tested and timed on an H200 (docs/gpu.md); the tests also
execute it in Triton's interpreter and compile it for sm_80, sm_90 and sm_100. Importing this module needs `triton`.
"""

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

from .reference import Geometry, gather_core, grid_sample_core
from .schema import save_inputs

__all__ = ["constants", "dcnv3_forward_kernel", "triton_forward"]


@triton.jit
def dcnv3_forward_kernel(
    input_ptr,
    offset_ptr,
    mask_ptr,
    output_ptr,
    height,
    width,
    out_height,
    out_width,
    pixels,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr,
    PADDING_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    GROUPS: tl.constexpr,
    OFFSET_SCALE: tl.constexpr,
    REMOVE_CENTER: tl.constexpr,
    MASK_IS_LOGITS: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """One program: BLOCK_PIXELS output pixels of one group, BLOCK_DEPTH of its DEPTH channels. Tensors contiguous."""
    POINTS: tl.constexpr = KERNEL_H * KERNEL_W - REMOVE_CENTER
    REAL: tl.constexpr = tl.float64 if input_ptr.dtype.element_ty == tl.float64 else tl.float32

    # Consecutive programs read neighbouring channels of the same pixels.
    group = tl.program_id(0) % GROUPS
    pixel = tl.program_id(0) // GROUPS * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    is_pixel = pixel < pixels
    column = pixel % out_width
    row = pixel // out_width % out_height
    image = (pixel // (out_width * out_height)).to(tl.int64)

    channel = tl.program_id(1) * BLOCK_DEPTH + tl.arange(0, BLOCK_DEPTH)
    is_channel = channel < DEPTH
    unit = pixel.to(tl.int64) * GROUPS + group
    offsets = offset_ptr + unit * (POINTS * 2)
    masks = mask_ptr + unit * POINTS
    images = input_ptr + image * height * width * (GROUPS * DEPTH) + group * DEPTH

    if MASK_IS_LOGITS:
        largest = tl.load(masks, mask=is_pixel, other=0).to(REAL)
        for k in tl.static_range(1, POINTS):
            largest = tl.maximum(largest, tl.load(masks + k, mask=is_pixel, other=0).to(REAL))
    total = tl.zeros((BLOCK_PIXELS,), REAL)
    accumulator = tl.zeros((BLOCK_PIXELS, BLOCK_DEPTH), REAL)

    # Constants go through tl.full: a bare Python float would be rounded to float32 beside a float64.
    scale = tl.full((), OFFSET_SCALE, REAL)
    CENTER_H: tl.constexpr = DILATION_H * (KERNEL_H - 1) // 2
    CENTER_W: tl.constexpr = DILATION_W * (KERNEL_W - 1) // 2
    MIDDLE: tl.constexpr = KERNEL_H * KERNEL_W // 2
    column_start = (column * STRIDE_W + (CENTER_W - PADDING_W)).to(REAL)
    row_start = (row * STRIDE_H + (CENTER_H - PADDING_H)).to(REAL)
    for tap in tl.static_range(KERNEL_H * KERNEL_W):
        if not (REMOVE_CENTER and tap == MIDDLE):
            k = tap - (REMOVE_CENTER and tap > MIDDLE)
            weight = tl.load(masks + k, mask=is_pixel, other=0).to(REAL)
            if MASK_IS_LOGITS:
                weight = tl.exp(weight - largest)
                total += weight
            tap_x = tl.full((), (tap // KERNEL_H * DILATION_W - CENTER_W) * OFFSET_SCALE, REAL)
            tap_y = tl.full((), (tap % KERNEL_H * DILATION_H - CENTER_H) * OFFSET_SCALE, REAL)
            offset_x = tl.load(offsets + 2 * k, mask=is_pixel, other=0).to(REAL)
            offset_y = tl.load(offsets + (2 * k + 1), mask=is_pixel, other=0).to(REAL)
            x = (column_start + tap_x) + offset_x * scale
            y = (row_start + tap_y) + offset_y * scale
            # More than one pixel outside, every corner is invalid. NaN is moved there, since every comparison with it
            # is false. The bounds keep the conversion to integers defined.
            x = tl.where(x > -2, tl.where(x > width + 1, width + 1, x), -2)
            y = tl.where(y > -2, tl.where(y > height + 1, height + 1, y), -2)
            left = tl.floor(x)
            top = tl.floor(y)
            right_part = x - left
            bottom_part = y - top
            x0 = left.to(tl.int32)
            y0 = top.to(tl.int32)
            for down in tl.static_range(2):
                for right in tl.static_range(2):
                    corner_x = x0 + right
                    corner_y = y0 + down
                    part = (bottom_part if down else 1 - bottom_part) * (right_part if right else 1 - right_part)
                    inside = (corner_x >= 0) & (corner_x < width) & (corner_y >= 0) & (corner_y < height) & is_pixel
                    place = (corner_y * width + corner_x).to(tl.int64) * (GROUPS * DEPTH)
                    # Without padding channels the condition is the same for all channels, which allows 128-bit loads.
                    wanted = inside[:, None] if DEPTH % BLOCK_DEPTH == 0 else inside[:, None] & is_channel[None, :]
                    value = tl.load((images + place)[:, None] + channel[None, :], mask=wanted, other=0).to(REAL)
                    accumulator += (part * weight)[:, None] * value
    if MASK_IS_LOGITS:
        accumulator /= total[:, None]
    outputs = output_ptr + (unit * DEPTH)[:, None] + channel[None, :]
    wanted = is_pixel[:, None] if DEPTH % BLOCK_DEPTH == 0 else is_pixel[:, None] & is_channel[None, :]
    tl.store(outputs, accumulator.to(output_ptr.dtype.element_ty), mask=wanted)


def constants(geometry: Geometry, depth: int, itemsize: int) -> dict[str, int | float | bool]:
    """Return the kernel's compile-time arguments.

    Args:
        geometry: the operator's static arguments.
        depth: channels per group.
        itemsize: bytes per element of the tensors.
    """
    block_depth = min(triton.next_power_of_2(depth), 64)
    # One load per thread and corner, for 128 threads: 16 bytes each, or less if the channels of a group do not have
    # this alignment. Larger blocks spill registers.
    elements_per_load = min(16 // itemsize, depth & -depth)
    block_pixels = max(128 * elements_per_load // block_depth, 1)
    values = {name.upper(): value for name, value in geometry._asdict().items()}
    return {**values, "DEPTH": depth, "BLOCK_PIXELS": block_pixels, "BLOCK_DEPTH": block_depth}


# A triton_op instead of an opaque operator, so that torch.compile and AOTInductor compile the kernel themselves. The
# schema is inferred from the annotations (the oldest torch supports only this), hence the list of scalars.
@torch.library.triton_op("ops_dcnv3::triton_forward", mutates_args=())
def triton_forward(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    padding_h: int,
    padding_w: int,
    dilation_h: int,
    dilation_w: int,
    groups: int,
    offset_scale: float,
    remove_center: bool,
    mask_is_logits: bool,
) -> Tensor:
    """`ops_dcnv3::forward` by the kernel: the same arguments and result."""
    geometry = Geometry(
        *(kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w),
        *(groups, offset_scale, remove_center, mask_is_logits),
    )
    batch, height, width, channels = input.shape
    _, out_height, out_width, _ = offset.shape
    output = input.new_empty(batch, out_height, out_width, channels)
    if batch == 0:
        return output
    pixels = batch * out_height * out_width
    depth = channels // geometry.groups
    meta = constants(geometry, depth, input.element_size())
    grid = (triton.cdiv(pixels, meta["BLOCK_PIXELS"]) * geometry.groups, triton.cdiv(depth, meta["BLOCK_DEPTH"]))
    if max(pixels, height * width) > 2**30:
        raise ValueError(f"the triton backend takes at most 2^30 pixels; got {pixels}; split the batch")
    # Triton launches on the current device, which may differ from the tensors'. Fake tensors need no device.
    with torch.cuda.device_of(input) if torch.cuda.is_initialized() else contextlib.nullcontext():
        torch.library.wrap_triton(dcnv3_forward_kernel)[grid](
            input.contiguous(),
            offset.contiguous(),
            mask.contiguous(),
            output,
            height,
            width,
            out_height,
            out_width,
            pixels,
            **meta,
        )
    return output


def _backward(ctx, grad_output: Tensor):
    # Compilers fuse the gathers; eager mode is faster with grid_sample.
    core = gather_core if torch.compiler.is_compiling() else grid_sample_core
    needed = ctx.needs_input_grad
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_(need) for tensor, need in zip(ctx.saved_tensors, needed)]
        output = core(*leaves, Geometry(*ctx.constants))
    grads = iter(torch.autograd.grad(output, [leaf for leaf in leaves if leaf.requires_grad], grad_output))
    return *(next(grads) if leaf.requires_grad else None for leaf in leaves), *(None for _ in ctx.constants)


triton_forward.register_autograd(_backward, setup_context=save_inputs)
