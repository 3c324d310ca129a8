"""Pillow reads and writes .cdc files once `register` was called.

    import cdcodec.pillow
    cdcodec.pillow.register(steps=17)
    image = Image.open("x.cdc")             # knows size, mode and metadata; decodes when pixels are first asked for
    image.save("y.cdc", lam=0.0256)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any

from PIL import Image, ImageFile

import cdcodec
from cdcodec import image as pictures
from cdcodec import metadata
from cdcodec.bits import container
from cdcodec.errors import CdcodecError

if TYPE_CHECKING:
    from cdcodec.weights import Checkpoint

FORMAT = "CDC"
EXTENSION, MIME = ".cdc", "image/x-cdc"
_METADATA = ("icc_profile", "exif", "xmp")


class CdcFileError(CdcodecError, OSError):
    """A .cdc file that Pillow opened is damaged or cannot be decoded here; an OSError too, as Pillow's own ones are."""


class CdcImageFile(ImageFile.ImageFile):
    """A .cdc file as Pillow opens it. `load` decodes it with `settings`, which may be changed before.

    settings: model, steps, gamma, rho and seed, as `cdcodec.decode` takes them.
    """

    format = FORMAT
    format_description = "Conditional-diffusion codec"
    settings: Mapping[str, Any]
    _coded: bytes | None

    def _open(self) -> None:
        assert self.fp is not None
        start = self.fp.read(container.HEADER.size)
        header = _checked(container.read_header, start)
        self._size = header.width, header.height
        self._mode = "RGB"
        self._coded = b""
        self.info["lambda"] = header.lam
        if header.flags:
            self._coded = start + self.fp.read()
            _, chunks, _ = _checked(container.unpack, self._coded)
            self._mode = _checked(pictures.original_mode, chunks)
            metadata.attach(self, chunks)

    def load(self) -> Any:
        """Decode the picture unless that was done. Raises CdcFileError, SettingError, WeightsError."""
        if self._coded is not None:
            decoded = _checked(cdcodec.decode, self._whole(), **dict(self.settings))
            self._coded = None
            self.im, self._mode = decoded.im, decoded.mode
            if self._exclusive_fp and self.fp is not None:
                self.fp.close()
            self.fp = None
        return super().load()

    def verify(self) -> None:
        """Check the file for damage without decoding it. Raises CdcFileError."""
        _checked(container.unpack, self._whole())

    def _whole(self) -> bytes:
        if not self._coded:
            assert self.fp is not None
            self.fp.seek(0)
            self._coded = self.fp.read()
        return self._coded


def register(*, model: Checkpoint | None = None, **settings: Any) -> None:
    """Make `Image.open("x.cdc")` and `image.save("x.cdc")` work in this process.

    model: what `cdcodec.load_model` gave, for both; without, the weights that ship. settings: steps, gamma, rho and
    seed, for decoding. `save` takes lam, rho, effort, model and strip, as `cdcodec.encode` does, and icc_profile,
    exif and xmp in the place of the image's own. Calling it again replaces model and settings.
    """

    def factory(fp: IO[bytes], filename: str | bytes) -> CdcImageFile:
        image = CdcImageFile(fp, filename)
        image.settings = {"model": model, **settings}
        return image

    def save(image: Image.Image, fp: IO[bytes], filename: str | bytes) -> None:
        fp.write(_encoded(image, model))

    Image.register_open(FORMAT, factory, _accept)
    Image.register_save(FORMAT, save)
    Image.register_extension(FORMAT, EXTENSION)
    Image.register_mime(FORMAT, MIME)


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(container.MAGIC)


def _encoded(image: Image.Image, model: Checkpoint | None) -> bytes:
    wishes = getattr(image, "encoderinfo", {})
    options = {name: wishes[name] for name in ("lam", "rho", "effort", "strip") if name in wishes}
    replaced = {name: wishes[name] for name in _METADATA if name in wishes}
    if isinstance(replaced.get("exif"), Image.Exif):
        replaced["exif"] = replaced["exif"].tobytes()
    if replaced:
        image = image.copy()
        image.info.update(replaced)
        image.info = {name: value for name, value in image.info.items() if value is not None}
    return cdcodec.encode(image, model=wishes.get("model", model), **options)


def _checked(function: Any, *arguments: Any, **keywords: Any) -> Any:
    """function(…) with the errors of damaged files as errors that Pillow's users expect."""
    try:
        return function(*arguments, **keywords)
    except cdcodec.errors.BitstreamError as error:
        raise CdcFileError(str(error)) from error


__all__ = ["CdcFileError", "CdcImageFile", "register"]
