"""What a .cdc file is and whether it is sound, without painting its picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cdcodec import files
from cdcodec.bits import container

if TYPE_CHECKING:
    from cdcodec.weights import Checkpoint


def facts(path: str) -> dict[str, Any]:
    """What `info` tells of a file, or of standard input; sizes in bytes. Raises BitstreamError, CdcodecError."""
    data = files.read(path)
    header, chunks, payload = container.split(data, max_pixels=2**32)
    container.inflated(header, chunks)
    return {
        "input": path,
        "version": container.VERSION,
        "width": header.width,
        "height": header.height,
        "lambda": header.lam,
        "checkpoint": f"{header.checkpoint:08x}",
        "symbol_check": f"{header.symbol_check:08x}",
        "bytes": len(data),
        "bpp": round(8 * len(data) / (header.width * header.height), 5),
        "payload": len(payload),
        "chunks": {name: len(chunk) for name, chunk in chunks.items()},
    }


def verify(path: str, load: Callable[[int], Checkpoint], max_pixels: int) -> None:
    """Check a file down to its last symbol, and what lies beside the picture. CdcodecError says what is wrong.

    load: the weights of a checkpoint id.
    """
    import numpy as np

    from cdcodec import codec, image

    data = files.read(path)
    header, chunks, _ = container.unpack(data, max_pixels)
    codec.read_symbols(data, load(header.checkpoint), max_pixels)
    image.to_pil(np.zeros((header.height, header.width, 3), np.uint8), chunks)
