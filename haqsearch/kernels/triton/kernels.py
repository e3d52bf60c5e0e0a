"""What runs on the GPU. Images are NHWC in memory; a pixel is one (batch, row, column) of the output, counted through.

Arguments that belong together travel as tuples: ``size`` (in_height, in_width, out_height, out_width), ``window`` (kernel,
stride, padding, dilation, each height then width) and ``epilogue`` (multiplier, offset, shift, zero_point, low, high).
A ``PER_CHANNEL`` of 1 reads an epilogue of shape (N,), of 0 one of shape (1,).
"""

# Triton reads the source of a kernel and gives its arguments their types when it compiles: there is nothing to annotate.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
import triton
import triton.language as tl


@triton.jit
def requantize(acc, channel, epilogue, PER_CHANNEL: tl.constexpr):
    """Codes (int64) of accumulators (int64), by the one rule of ``haqsearch.kernels.reference.epilogue``."""
    multiplier, offset, shift, zero_point, low, high = epilogue
    at = channel * PER_CHANNEL
    scaled = acc * tl.load(multiplier + at) + tl.load(offset + at)
    codes = (scaled >> tl.load(shift + at)) + zero_point
    return tl.minimum(tl.maximum(codes, low), high)


@triton.jit
def corner(pixel, size, window):
    """Batch, and row and column in the padded input where the window of an output pixel begins."""
    out_height, out_width = size[2], size[3]
    row = (pixel // out_width) % out_height
    column = pixel % out_width
    return pixel // (out_height * out_width), row * window[2] - window[4], column * window[3] - window[5]


@triton.jit
def within(row, column, size):
    """Whether a position is one of the input's, not of its border."""
    return (row >= 0) & (row < size[0]) & (column >= 0) & (column < size[1])


@triton.jit
def gemm_kernel(
    x,
    weight,
    sums,
    out,
    size,
    window,
    epilogue,
    pixels,
    inputs,  # channels a group reads
    outputs,  # channels a group gives
    blocks,  # of PLANE bytes, in one output channel's packed weights
    zero_point,
    first,
    step,
    PER_CHANNEL: tl.constexpr,
    BITS: tl.constexpr,
    CENTRE: tl.constexpr,
    WIDE: tl.constexpr,
    PLANE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Convolution as an implicit matrix product: (pixel, (ky, kx, channel)) x ((ky, kx, channel), output channel)."""
    in_height, in_width = size[0], size[1]
    kernel_width, dilation_h, dilation_w = window[1], window[6], window[7]
    PLANES: tl.constexpr = 8 // BITS
    group, groups = tl.program_id(2), tl.num_programs(2)
    pixel = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    batch, row, column = corner(pixel, size, window)
    image = x + batch.to(tl.int64) * in_height * in_width * inputs * groups + group * inputs
    packed = weight + (group * outputs + channel).to(tl.int64) * blocks * PLANE
    lane = tl.arange(0, PLANE)
    depth = window[0] * kernel_width * inputs
    padding = zero_point - CENTRE  # a real zero

    acc = tl.full((BLOCK_M, BLOCK_N), 0, tl.int64 if WIDE else tl.int32)
    for block in range(blocks):
        fields = tl.load(packed[None, :] + block * PLANE + lane[:, None], mask=(channel < outputs)[None, :], other=0)
        for plane in tl.static_range(PLANES):
            k = (block * PLANES + plane) * PLANE + lane
            tap = k // inputs
            at_row = row[:, None] + ((tap // kernel_width) * dilation_h)[None, :]
            at_column = column[:, None] + ((tap % kernel_width) * dilation_w)[None, :]
            inside = within(at_row, at_column, size) & (pixel < pixels)[:, None] & (k < depth)[None, :]
            at = (at_row * in_width + at_column) * (inputs * groups) + (k % inputs)[None, :]
            codes = tl.load(image[:, None] + at, mask=inside, other=0).to(tl.int32)
            # Behind the last input the weights are what the packing left there: the activations must be 0.
            a = tl.where(inside, codes - CENTRE, tl.where(k < depth, padding, 0)[None, :]).to(tl.int8)
            b = (((fields.to(tl.int32) >> (plane * BITS)) & ((1 << BITS) - 1)) * step + first).to(tl.int8)
            if WIDE:
                acc += tl.dot(a, b, out_dtype=tl.int32).to(tl.int64)
            else:
                acc = tl.dot(a, b, acc, out_dtype=tl.int32)

    channel_out = group * outputs + tl.minimum(channel, outputs - 1)
    exact = acc.to(tl.int64) - tl.load(sums + channel_out)[None, :] * padding
    codes = requantize(exact, channel_out[None, :], epilogue, PER_CHANNEL)
    at = pixel.to(tl.int64)[:, None] * (outputs * groups) + channel_out[None, :]
    tl.store(out + at, codes.to(out.dtype.element_ty), mask=(pixel < pixels)[:, None] & (channel < outputs)[None, :])


@triton.jit
def window_sum_kernel(
    x,
    weight,
    out,
    size,
    window,
    epilogue,
    pixels,
    channels,  # of the input
    outputs,  # a channel of the input gives
    zero_point,
    PER_CHANNEL: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Depthwise convolution with ``weight`` (tap, output channel) or, not ``WEIGHTED``, the sum over each window."""
    in_height, in_width = size[0], size[1]
    pixel = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    batch, row, column = corner(pixel, size, window)
    image = x + batch.to(tl.int64) * in_height * in_width * channels
    wanted = (pixel < pixels)[:, None] & (channel < channels * outputs)[None, :]

    # A pool may read codes of 16 bits and more; a convolution's partial sums fit 32 bits, as lowering has seen to.
    acc = tl.full((BLOCK_M, BLOCK_N), 0, tl.int32 if WEIGHTED else tl.int64)
    for tap in range(window[0] * window[1]):
        at_row = row + (tap // window[1]) * window[6]
        at_column = column + (tap % window[1]) * window[7]
        inside = within(at_row, at_column, size)[:, None] & wanted
        at = ((at_row * in_width + at_column) * channels)[:, None] + (channel // outputs)[None, :]
        values = tl.load(image[:, None] + at, mask=inside, other=0).to(acc.dtype) - zero_point
        if WEIGHTED:
            factor = tl.load(weight + tap * channels * outputs + channel, mask=channel < channels * outputs, other=0)
            values = values * factor.to(tl.int32)[None, :]
        acc += tl.where(inside, values, 0)

    channel = tl.minimum(channel, channels * outputs - 1)
    codes = requantize(acc.to(tl.int64), channel[None, :], epilogue, PER_CHANNEL)
    at = pixel.to(tl.int64)[:, None] * (channels * outputs) + channel[None, :]
    tl.store(out + at, codes.to(out.dtype.element_ty), mask=wanted)


@triton.jit
def window_max_kernel(
    x, out, size, window, pixels, channels, LEAST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Largest code of each window; ``LEAST`` is the smallest one of the type."""
    in_height, in_width = size[0], size[1]
    pixel = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    batch, row, column = corner(pixel, size, window)
    image = x + batch.to(tl.int64) * in_height * in_width * channels
    wanted = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    largest = tl.full((BLOCK_M, BLOCK_N), LEAST, tl.int32)
    for tap in range(window[0] * window[1]):
        at_row = row + (tap // window[1]) * window[6]
        at_column = column + (tap % window[1]) * window[7]
        inside = within(at_row, at_column, size)[:, None] & wanted
        at = ((at_row * in_width + at_column) * channels)[:, None] + channel[None, :]
        codes = tl.load(image[:, None] + at, mask=inside, other=LEAST)
        largest = tl.maximum(largest, codes.to(tl.int32))
    at = pixel.to(tl.int64)[:, None] * channels + channel[None, :]
    tl.store(out + at, largest.to(out.dtype.element_ty), mask=wanted)


@triton.jit
def weighted_sum_kernel(
    inputs, zero_points, multipliers, out, epilogue, count, channels, PER_CHANNEL: tl.constexpr, BLOCK: tl.constexpr
):
    """Sum of (code - zero point) * multiplier over ``inputs``, all of one memory layout with the channels last."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.full((BLOCK,), 0, tl.int64)
    for t in tl.static_range(len(inputs)):
        codes = tl.load(inputs[t] + i, mask=i < count, other=0).to(tl.int64)
        acc += (codes - zero_points[t]) * multipliers[t]
    codes = requantize(acc, i % channels, epilogue, PER_CHANNEL)
    tl.store(out + i, codes.to(out.dtype.element_ty), mask=i < count)
