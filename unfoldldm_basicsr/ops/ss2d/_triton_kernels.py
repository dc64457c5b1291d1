"""Triton kernels of the scan; launched by ``_triton``.

Sequential inside a chunk, parallel over chunks. One program owns BLOCK_C channels of one chunk of
one direction of one image and keeps their (N, BLOCK_C) states in registers; B and C are shared by
all its lanes. A direction is only an index computation; nothing is reordered in memory.

Buffers per chunk hold one padded tile (BLOCK_N, BLOCK_C) per program, so that the registers are
not spent on masks and strides: (B 4, chunks, channel blocks, BLOCK_N, BLOCK_C). Padded cells have
A = B = x = 0 and stay zero. State and arithmetic are float32. L = H W < 2^31; every other offset
is computed in 64 bits.
"""

import triton
import triton.language as tl


@triton.jit
def _pixel(step, k, length, height, width):
    """Pixel that direction k visits at ``step``: 0 row-major, 1 column-major, 2 and 3 reversed."""
    step = tl.where(k >= 2, length - 1 - step, step)
    return tl.where(k % 2 == 1, (step % height) * width + step // height, step)


@triton.jit
def _move(pixel, k, steps, length, width):
    """Pixel of the next (steps = 1) or previous (-1) step of direction k, inside the image."""
    stride = tl.where(k % 2 == 1, width, 1) * tl.where(k >= 2, -steps, steps)
    wrap = tl.where(k % 2 == 1, length - 1, 0)  # from the end of a column to the next column
    pixel += stride
    return tl.where(pixel >= length, pixel - wrap, tl.where(pixel < 0, pixel + wrap, pixel))


@triton.jit
def _tile(BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr):
    """Offsets inside one program's (N, C) tile, and its size; tiles are padded, so need no mask."""
    offsets = tl.arange(0, BLOCK_N)[:, None] * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    return offsets, BLOCK_N * BLOCK_C


@triton.jit
def _tile_slot(image_direction, num_chunks, chunk):
    """Number of this program's tile in a buffer (B 4, chunks, blocks, ...)."""
    slot = image_direction.to(tl.int64) * num_chunks + chunk
    return slot * tl.num_programs(0) + tl.program_id(0)


@triton.jit
def _load(pointer, offsets, mask):
    return tl.load(pointer + offsets, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _softplus(v):
    """log(1 + e^v); (e / (u - 1)) log(u) with u = 1 + e is exact where log(1 + e) is not."""
    e = tl.exp(tl.minimum(v, 20.0))
    u = 1.0 + e
    small = tl.where(u == 1.0, 1.0, u - 1.0)
    return tl.where(v > 20.0, v, tl.where(u == 1.0, e, tl.log(u) * (e / small)))


@triton.jit
def chunk_kernel(
    x_ptr, dt_ptr, a2_ptr, b_ptr, c_ptr, bias_ptr, gy_ptr, end_ptr, sum_ptr, grad_ptr,
    height, width, channels, d_state, chunk_size, num_chunks,
    dt_pixel, dt_dir, b_pixel, b_dir, c_pixel, c_dir,
    ADJOINT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    chunk, image, k = tl.program_id(1), tl.program_id(2) // 4, tl.program_id(2) % 4
    state, length, first = tl.arange(0, BLOCK_N), height * width, chunk * chunk_size
    in_c, in_n = channel < channels, state < d_state
    base, wide_k = image.to(tl.int64) * length, k.to(tl.int64)
    dt_ptr, b_ptr, c_ptr = dt_ptr + wide_k * dt_dir, b_ptr + wide_k * b_dir, c_ptr + wide_k * c_dir
    tile, size = _tile(BLOCK_N, BLOCK_C)
    a2 = tl.load(a2_ptr + (k * tl.num_programs(0) + tl.program_id(0)) * size + tile)
    bias = _load(bias_ptr, k * channels + channel, in_c)
    h = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    total = tl.zeros((BLOCK_C,), tl.float32)
    if ADJOINT:
        gain = h + 1.0
        grad = h
    pixel = _pixel(first, k, length, height, width)
    for _ in range(tl.minimum(chunk_size, length - first)):
        here = base + pixel
        x = _load(x_ptr, here * channels + channel, in_c)
        raw = _load(dt_ptr, here * dt_pixel + channel, in_c) + bias
        b = _load(b_ptr, here * b_pixel + state, in_n)
        delta = _softplus(raw)
        decay = tl.exp2(a2 * delta[None, :])
        h = decay * h + b[:, None] * (delta * x)[None, :]
        total += delta
        if ADJOINT:
            c = _load(c_ptr, here * c_pixel + state, in_n)
            gy = _load(gy_ptr, here * channels + channel, in_c)
            gain *= decay
            grad += gain * (c[:, None] * gy[None, :])
        pixel = _move(pixel, k, 1, length, width)
    slot = _tile_slot(image * 4 + k, num_chunks, chunk)
    tl.store(end_ptr + slot * size + tile, h)
    tl.store(sum_ptr + slot * BLOCK_C + tl.arange(0, BLOCK_C), total)
    if ADJOINT:
        tl.store(grad_ptr + slot * size + tile, grad)


@triton.jit
def carry_kernel(
    value_ptr, sum_ptr, a2_ptr, num_chunks,
    REVERSE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """In place: results of the chunks for a zero start -> their true start values."""
    image, lane = tl.program_id(1), tl.arange(0, BLOCK_C)
    tile, size = _tile(BLOCK_N, BLOCK_C)
    a2 = tl.load(a2_ptr + ((image % 4) * tl.num_programs(0) + tl.program_id(0)) * size + tile)
    h = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    slot = _tile_slot(image, num_chunks, (num_chunks - 1) if REVERSE else 0)
    value = tl.load(value_ptr + slot * size + tile)
    total = tl.load(sum_ptr + slot * BLOCK_C + lane)
    for i in range(num_chunks):
        ahead = tl.minimum(i + 1, num_chunks - 1)  # loaded before the store: hides its latency
        after = _tile_slot(image, num_chunks, (num_chunks - 1 - ahead) if REVERSE else ahead)
        next_value = tl.load(value_ptr + after * size + tile)
        next_total = tl.load(sum_ptr + after * BLOCK_C + lane)
        tl.store(value_ptr + slot * size + tile, h)
        h = tl.exp2(a2 * total[None, :]) * h + value
        value, total, slot = next_value, next_total, after


@triton.jit
def output_kernel(
    x_ptr, dt_ptr, a2_ptr, b_ptr, c_ptr, bias_ptr, start_ptr, y_ptr,
    height, width, channels, d_state, chunk_size, num_chunks, num_pixels,
    dt_pixel, dt_dir, b_pixel, b_dir, c_pixel, c_dir,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    chunk, image, k = tl.program_id(1), tl.program_id(2) // 4, tl.program_id(2) % 4
    state, length, first = tl.arange(0, BLOCK_N), height * width, chunk * chunk_size
    in_c, in_n = channel < channels, state < d_state
    base, wide_k = image.to(tl.int64) * length, k.to(tl.int64)
    dt_ptr, b_ptr, c_ptr = dt_ptr + wide_k * dt_dir, b_ptr + wide_k * b_dir, c_ptr + wide_k * c_dir
    tile, size = _tile(BLOCK_N, BLOCK_C)
    a2 = tl.load(a2_ptr + (k * tl.num_programs(0) + tl.program_id(0)) * size + tile)
    bias = _load(bias_ptr, k * channels + channel, in_c)
    slot = _tile_slot(image * 4 + k, num_chunks, chunk)
    h = tl.load(start_ptr + slot * size + tile)
    pixel = _pixel(first, k, length, height, width)
    for _ in range(tl.minimum(chunk_size, length - first)):
        here = base + pixel
        x = _load(x_ptr, here * channels + channel, in_c)
        raw = _load(dt_ptr, here * dt_pixel + channel, in_c) + bias
        b = _load(b_ptr, here * b_pixel + state, in_n)
        c = _load(c_ptr, here * c_pixel + state, in_n)
        delta = _softplus(raw)
        h = tl.exp2(a2 * delta[None, :]) * h + b[:, None] * (delta * x)[None, :]
        y = tl.sum(h * c[:, None], axis=0)
        tl.store(y_ptr + (wide_k * num_pixels + here) * channels + channel, y, mask=in_c)
        pixel = _move(pixel, k, 1, length, width)


@triton.jit
def adjoint_kernel(
    x_ptr, dt_ptr, a2_ptr, b_ptr, c_ptr, bias_ptr, gy_ptr, start_ptr, flow_ptr, keep_ptr,
    gx_ptr, gdt_ptr, ga_ptr, gb_ptr, gc_ptr,
    height, width, channels, d_state, chunk_size, num_chunks, num_pixels,
    dt_pixel, dt_dir, b_pixel, b_dir, c_pixel, c_dir,
    SUB: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    chunk, image, k = tl.program_id(1), tl.program_id(2) // 4, tl.program_id(2) % 4
    state, length, first = tl.arange(0, BLOCK_N), height * width, chunk * chunk_size
    in_c, in_n = channel < channels, state < d_state
    base, wide_k = image.to(tl.int64) * length, k.to(tl.int64)
    dt_ptr, b_ptr, c_ptr = dt_ptr + wide_k * dt_dir, b_ptr + wide_k * b_dir, c_ptr + wide_k * c_dir
    tile, size = _tile(BLOCK_N, BLOCK_C)
    a2 = tl.load(a2_ptr + (k * tl.num_programs(0) + tl.program_id(0)) * size + tile)
    bias = _load(bias_ptr, k * channels + channel, in_c)
    slot = _tile_slot(image * 4 + k, num_chunks, chunk)
    steps = tl.minimum(chunk_size, length - first)
    num_groups = (steps + SUB - 1) // SUB
    keep_ptr += slot * (chunk_size // SUB) * size
    shift = tl.program_id(0).to(tl.int64) * num_pixels * 4 * d_state
    gb_ptr, gc_ptr = gb_ptr + shift, gc_ptr + shift

    # Forward through the chunk: the state that enters every group of SUB steps.
    h = tl.load(start_ptr + slot * size + tile)
    pixel = _pixel(first, k, length, height, width)
    for done in range(steps):
        if done % SUB == 0:
            tl.store(keep_ptr + (done // SUB) * size + tile, h)
        here = base + pixel
        x = _load(x_ptr, here * channels + channel, in_c)
        raw = _load(dt_ptr, here * dt_pixel + channel, in_c) + bias
        b = _load(b_ptr, here * b_pixel + state, in_n)
        delta = _softplus(raw)
        h = tl.exp2(a2 * delta[None, :]) * h + b[:, None] * (delta * x)[None, :]
        pixel = _move(pixel, k, 1, length, width)
    tl.debug_barrier()  # the groups below read what this program has just stored

    flow = tl.load(flow_ptr + slot * size + tile)
    ga = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    for back in range(num_groups):
        group = num_groups - 1 - back
        begin = first + group * SUB
        h = tl.load(keep_ptr + group * size + tile)
        states = (h,)
        pixel = _pixel(begin, k, length, height, width)
        for i in tl.static_range(SUB):  # steps beyond the image have delta = 0 and change nothing
            live_c = channel < tl.where(begin + i < length, channels, 0)
            live_n = state < tl.where(begin + i < length, d_state, 0)
            here = base + pixel
            x = _load(x_ptr, here * channels + channel, live_c)
            gy = _load(gy_ptr, here * channels + channel, live_c)
            raw = _load(dt_ptr, here * dt_pixel + channel, live_c) + bias
            b = _load(b_ptr, here * b_pixel + state, live_n)
            delta = tl.where(live_c, _softplus(raw), 0.0)
            h = tl.exp2(a2 * delta[None, :]) * h + b[:, None] * (delta * x)[None, :]
            gc = tl.sum(h * gy[None, :], axis=1)
            part = (here * 4 + k) * d_state + state
            tl.store(gc_ptr + part, gc, mask=live_n)
            states = states + (h,)  # noqa: RUF005 (Triton has no star in tuples)
            pixel = _move(pixel, k, 1, length, width)
        tl.debug_barrier()
        pixel = _pixel(tl.minimum(begin + SUB, length) - 1, k, length, height, width)
        for i_back in tl.static_range(SUB):
            step = begin + (SUB - 1 - i_back)
            live_c = channel < tl.where(step < length, channels, 0)
            live_n = state < tl.where(step < length, d_state, 0)
            here = base + pixel
            x = _load(x_ptr, here * channels + channel, live_c)
            gy = _load(gy_ptr, here * channels + channel, live_c)
            raw = _load(dt_ptr, here * dt_pixel + channel, live_c) + bias
            b = _load(b_ptr, here * b_pixel + state, live_n)
            c = _load(c_ptr, here * c_pixel + state, live_n)
            delta = tl.where(live_c, _softplus(raw), 0.0)
            g = c[:, None] * gy[None, :] + flow
            flow = tl.exp2(a2 * delta[None, :]) * g
            exponent = flow * states[SUB - 1 - i_back]  # gradient of the exponent delta A
            ga += exponent * delta[None, :]
            gdx = tl.sum(g * b[:, None], axis=0)
            gdelta = 0.6931471805599453 * tl.sum(exponent * a2, axis=0) + x * gdx
            gb = tl.sum(g * (delta * x)[None, :], axis=1)
            tl.store(
                gx_ptr + (wide_k * num_pixels + here) * channels + channel, delta * gdx, mask=live_c
            )
            gdt = gdelta * tl.sigmoid(raw)
            tl.store(gdt_ptr + (here * 4 + k) * channels + channel, gdt, mask=live_c)
            part = (here * 4 + k) * d_state + state
            tl.store(gb_ptr + part, gb, mask=live_n)
            pixel = tl.where(step < length, _move(pixel, k, -1, length, width), pixel)
    tl.store(ga_ptr + slot * size + tile, ga)
