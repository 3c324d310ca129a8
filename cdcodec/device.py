"""Where the networks run, and in which precision: neither ever touches the bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cdcodec.errors import WeightsError

if TYPE_CHECKING:
    import torch


def pick_device(name: str) -> torch.device:
    """auto: CUDA where there is one. Raises WeightsError where what was asked for is not there."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise WeightsError("no CUDA device is available; use --device cpu")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """auto: bfloat16 where the device has matrix units or instructions for it, else float32."""
    import torch

    if precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32
