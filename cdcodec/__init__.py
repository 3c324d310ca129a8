"""cdcodec: an image codec with a conditional-diffusion decoder that writes real files.

    import cdcodec
    data = cdcodec.encode(image, lam=0.0128)            # PIL image or uint8 array -> bytes
    image = cdcodec.decode(data, steps=17, gamma=0.8)   # bytes -> PIL image

Importing it is cheap; PyTorch is loaded with the first model.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdcodec import errors
from cdcodec.config import DEFAULT_LAMBDA, MAX_PIXELS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from cdcodec.bits.container import Header
    from cdcodec.weights import Checkpoint

__version__ = "0.1.0"
__all__ = ["__version__", "decode", "encode", "errors", "load_model", "read_header"]


def encode(
    image: Image | NDArray[np.uint8],
    lam: float = DEFAULT_LAMBDA,
    *,
    effort: int = 0,
    rho: float | None = None,
    model: Checkpoint | None = None,
    strip: bool = False,
) -> bytes:
    """Code a picture as the bytes of a .cdc file.

    image: a PIL image of any mode, or a uint8 array (H, W), (H, W, 3) or (H, W, 4). Its ICC profile, EXIF, XMP and
    alpha go into the file, the first three not with `strip`.
    lam: λ; a larger one means a smaller file. Any value within the model's ladder.
    rho: at which the file shall decode best (None: the model's default); it decodes at any other too.
    effort: steps in which the latent is refined for that; a file of more effort looks better at equal bytes, and takes
    longer to make.
    model: what `load_model` gave; without, the weights that ship, loaded once.
    Raises ImageError, WeightsError, SettingError.
    """
    from PIL.Image import Image as PILImage

    from cdcodec.codec import encode as encode_pixels
    from cdcodec.image import from_array, from_pil
    from cdcodec.weights import find, find_weights

    picture = from_pil(image, strip=strip) if isinstance(image, PILImage) else from_array(image)
    model = model or _shipped(find(find_weights()).id)
    return encode_pixels(picture.pixels, model, lam, picture.chunks, effort=effort, rho=rho)


def decode(
    data: bytes,
    *,
    steps: int | None = None,
    gamma: float | None = None,
    seed: int = 0,
    rho: float | None = None,
    model: Checkpoint | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Image:
    """Paint the picture of a .cdc file: a PIL image of the original's mode, with its metadata in `.info`.

    steps: of the diffusion; 0 is the light head alone. gamma: strength of the noise it starts from; 0 is
    deterministic, 0.8 gives texture. rho: 0 for fidelity to 0.9 for looks. None: the checkpoint's own default.
    The same seed gives the same picture. max_pixels: larger pictures are refused. Raises BitstreamError, WeightsError,
    SettingError.
    """
    from cdcodec.codec import decode as decode_pixels
    from cdcodec.image import to_pil

    if model is None:
        model = _shipped(read_header(data, max_pixels).checkpoint)
    pixels, chunks = decode_pixels(data, model, steps=steps, gamma=gamma, seed=seed, rho=rho, max_pixels=max_pixels)
    return to_pil(pixels, chunks)


def read_header(data: bytes, max_pixels: int = MAX_PIXELS) -> Header:
    """What the first 28 bytes of a .cdc file say: λ, width, height, checkpoint. Raises BitstreamError."""
    from cdcodec.bits.container import read_header as read

    return read(data, max_pixels)


def load_model(root: str | Path | None = None, **options: Any) -> Checkpoint:
    """Load weights, to be given to `encode` and `decode`; see `cdcodec.weights.load_model`. Raises WeightsError."""
    from cdcodec.weights import load_model as load

    return load(root, **options)


@lru_cache(maxsize=2)
def _shipped(checkpoint: int) -> Checkpoint:
    return load_model(checkpoint=checkpoint)
