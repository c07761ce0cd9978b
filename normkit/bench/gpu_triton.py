"""A layer norm as one would write it in Triton, for `normkit bench --gpu`: a program for each row, two sweeps over it."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _row(x, y, weight, bias, length, period, eps, PER_ELEMENT: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    x += row * length
    y += row * length
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, length, BLOCK):
        at = first + tl.arange(0, BLOCK)
        total += tl.load(x + at, mask=at < length, other=0.0).to(tl.float32)
    mean = tl.sum(total) / length
    squares = tl.zeros([BLOCK], tl.float32)
    for first in range(0, length, BLOCK):
        at = first + tl.arange(0, BLOCK)
        d = tl.where(at < length, tl.load(x + at, mask=at < length, other=0.0).to(tl.float32) - mean, 0.0)
        squares += d * d
    rstd = tl.rsqrt(tl.sum(squares) / length + eps)
    for first in range(0, length, BLOCK):
        at = first + tl.arange(0, BLOCK)
        inside = at < length
        if PER_ELEMENT:
            w, b = tl.load(weight + at, mask=inside), tl.load(bias + at, mask=inside)
        else:
            w, b = tl.load(weight + row % period), tl.load(bias + row % period)
        d = tl.load(x + at, mask=inside).to(tl.float32) - mean
        tl.store(y + at, (d * rstd * w.to(tl.float32) + b.to(tl.float32)).to(y.dtype.element_ty), mask=inside)


def normalize(x: Any, weight: Any, bias: Any, per_element: bool, eps: float) -> Any:
    """layer_norm over the last axis (`per_element`), or instance_norm of channels-first."""
    y = torch.empty_like(x)
    period = weight.numel()
    length = x.shape[-1] if per_element else x[0, 0].numel()
    block = min(triton.next_power_of_2(length), 65536 // x.element_size())
    warps = min(max(block // 256, 1), 8)
    _row[(x.numel() // length,)](x, y, weight, bias, length, period, eps, PER_ELEMENT=per_element, BLOCK=block, num_warps=warps)
    return y
