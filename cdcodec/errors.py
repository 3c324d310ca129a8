"""Every error a user can meet: one line that says what is wrong and what to do; the command line exits with 1."""

from __future__ import annotations


class CdcodecError(Exception):
    """Base of all errors raised on purpose by cdcodec."""


class BitstreamError(CdcodecError):
    """The bytes are not a sound .cdc file for this version and these weights."""


class NotCDCError(BitstreamError):
    """The file does not begin with the CDC magic."""


class UnsupportedVersionError(BitstreamError):
    """The file is of a format version, or has flags, that this release does not know."""


class TruncatedError(BitstreamError):
    """The file ends before its header or its chunks do."""


class CorruptError(BitstreamError):
    """A checksum or a stated size does not agree with the bytes."""


class SymbolMismatchError(BitstreamError):
    """The file is sound, but this machine derived other symbols from it than the encoder wrote."""


class WeightsError(CdcodecError):
    """A checkpoint is missing, damaged, of another kind, or does not offer what was asked for."""


class SettingError(CdcodecError, ValueError):
    """Steps, γ, ρ or a seed out of range, or one that these weights do not offer."""


class ImageError(CdcodecError):
    """A picture cannot be read, is too large, or cannot be written as asked."""


class OutputError(CdcodecError):
    """An output exists already, collides with another one, or cannot be written."""


class TargetError(CdcodecError):
    """No λ of these weights gives this picture the size or quality that was asked for."""


class TrainingError(CdcodecError):
    """A training run cannot start, resume or be exported."""
