"""The spine: an image becomes bytes, and bytes become an image.

    pixels ─► pad ─► model.analyse ─► Symbols ─► coder.write ─► container.pack ─► bytes
    pixels ◄─ crop ◄─ model.synthesise ◄─ ŷ ◄─ Symbols ◄─ coder.Reader ◄─ container.unpack ◄─ bytes
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cdcodec.bits import coder, container
from cdcodec.bits.container import Header
from cdcodec.config import MAX_GAMMA, MAX_PIXELS
from cdcodec.errors import ImageError, SettingError, SymbolMismatchError
from cdcodec.image import pad
from cdcodec.symbols import Symbols
from cdcodec.weights import Checkpoint


def encode(
    pixels: NDArray[np.uint8],
    checkpoint: Checkpoint,
    lam: float,
    chunks: dict[str, bytes] | None = None,
    *,
    effort: int = 0,
    rho: float | None = None,
) -> bytes:
    """A picture, uint8 (H, W, 3) sRGB, as the bytes of a .cdc file; a larger λ means a smaller file.

    chunks: side information by name (icc, exif, xmp, alpha, origin), kept as it is. rho: at which the file shall decode
    best, None for the checkpoint's default; it decodes at any other too. effort: steps in which the latent is refined
    for that. Raises WeightsError if λ lies outside the checkpoint's ladder, ImageError for an array that is no picture,
    SettingError.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        raise ImageError(f"expected uint8 pixels (H, W, 3), got {pixels.dtype} {pixels.shape}")
    height, width = pixels.shape[:2]
    lam = checkpoint.check_lambda(lam)
    config = checkpoint.model.config
    rho = config.rho if rho is None else rho
    if effort < 0 or not config.rho_min <= rho <= config.rho_max:
        raise SettingError(f"encode needs effort ≥ 0 and {config.rho_min:g} ≤ ρ ≤ {config.rho_max:g}")
    symbols = checkpoint.model.analyse(pad(pixels, config.padding), lam, effort=effort, rho=rho)
    header = Header(
        checkpoint=checkpoint.id,
        lam=lam,
        width=width,
        height=height,
        symbol_check=symbols.check(config.fraction_bits),
    )
    return container.pack(header, chunks or {}, coder.write(symbols, checkpoint.tables))


def decode(
    data: bytes,
    checkpoint: Checkpoint,
    *,
    steps: int | None = None,
    gamma: float | None = None,
    seed: int = 0,
    rho: float | None = None,
    max_pixels: int = MAX_PIXELS,
) -> tuple[NDArray[np.uint8], dict[str, bytes]]:
    """The bytes of a .cdc file as the picture, uint8 (H, W, 3), and its chunks.

    steps: denoising steps, 0 for the light head alone. gamma, 0 to MAX_GAMMA: noise the decoding starts from. rho,
    within the configuration's rho_min and rho_max: 0 for the smallest error, more for realism. None takes the
    checkpoint's default. seed, 0 to 2^32 - 1: the same gives the same picture. max_pixels: larger pictures are refused
    before anything is allocated. Raises BitstreamError, WeightsError, SettingError.
    """
    config = checkpoint.model.config
    steps, gamma, rho = (
        config.steps if steps is None else steps,
        config.gamma if gamma is None else gamma,
        config.rho if rho is None else rho,
    )
    low, high = config.rho_min, config.rho_max
    if steps < 0 or not 0 <= gamma <= MAX_GAMMA or not low <= rho <= high or not 0 <= seed < 2**32:
        raise SettingError(f"decode needs steps ≥ 0, 0 ≤ γ ≤ {MAX_GAMMA:g}, {low:g} ≤ ρ ≤ {high:g} and 0 ≤ seed < 2^32")
    header, chunks, symbols = read_symbols(data, checkpoint, max_pixels)
    latent = symbols.latent(config.fraction_bits)
    pixels = checkpoint.model.synthesise(latent, header.lam, steps=steps, gamma=gamma, seed=seed, rho=rho)
    return pixels[: header.height, : header.width], chunks


def read_symbols(
    data: bytes, checkpoint: Checkpoint, max_pixels: int = MAX_PIXELS
) -> tuple[Header, dict[str, bytes], Symbols]:
    """Header, chunks and symbols of a file, with every check that the format offers. Raises BitstreamError,
    WeightsError."""
    header, chunks, payload = container.unpack(data, max_pixels)
    checkpoint.check_file(header.checkpoint)
    checkpoint.check_lambda(header.lam)
    config = checkpoint.model.config
    rows, columns = (-(-n // config.padding) * (config.padding // config.stride) for n in (header.height, header.width))
    reader = coder.Reader(payload, checkpoint.tables)
    z = reader.read_z((config.hyper, -(-rows // 4), -(-columns // 4)))
    symbols = checkpoint.model.integer(z, (rows, columns), lambda places, index, mean: reader.read_y(index))
    reader.finish(symbols)
    if symbols.check(config.fraction_bits) != header.symbol_check:
        raise SymbolMismatchError(
            "the file is sound, but this machine derives other symbols from it than the encoder wrote; "
            "please report the machine and the versions of torch and cdcodec"
        )
    return header, chunks, symbols


__all__ = ["decode", "encode", "read_symbols"]
