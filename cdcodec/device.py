"""Where the networks run, in which precision, and how memory is kept: none of it ever touches the bits."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from cdcodec.errors import WeightsError

if TYPE_CHECKING:
    import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""


def pick_device(name: str) -> torch.device:
    """auto: CUDA where there is one. Raises WeightsError where what was asked for is not there, ValueError for what
    is neither auto, cpu nor cuda."""
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, not {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise WeightsError("no CUDA device is available; use --device cpu")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """auto: bfloat16 where the device has matrix units or instructions for it, else float32. Raises ValueError."""
    import torch

    named = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if precision in named:
        return named[precision]
    if precision != "auto":
        raise ValueError(f"precision must be auto, float32 or bfloat16, not {precision!r}")
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def keep_freed_memory() -> None:
    """Let glibc keep large blocks that are freed: by default it gives each activation back to the kernel and asks for
    the next one anew, page by page, which takes a tenth of a large picture's time. Elsewhere this does nothing."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
        mallopt(parameter, 2**30)
