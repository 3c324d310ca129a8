"""The seam refuses what the coder could not carry, and its checksum is the same on every machine."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np
import pytest
from example import FRACTION_BITS, HEADER, SYMBOLS

from cdcodec.symbols import SYMBOL_LIMIT


@pytest.mark.parametrize("name", ["z", "y", "mean", "index"])
def test_other_dtypes_are_refused(name):
    with pytest.raises(TypeError, match="must be"):
        replace(SYMBOLS, **{name: getattr(SYMBOLS, name).astype(np.int64)})


@pytest.mark.parametrize("name", ["y", "mean", "index"])
def test_shapes_that_disagree_are_refused(name):
    with pytest.raises(ValueError, match="mean and stage disagree"):
        replace(SYMBOLS, **{name: getattr(SYMBOLS, name)[:, :1]})


def test_z_must_have_three_dimensions():
    with pytest.raises(ValueError, match="mean and stage disagree"):
        replace(SYMBOLS, z=SYMBOLS.z[0])


@pytest.mark.parametrize("name", ["z", "y"])
@pytest.mark.parametrize("value", [SYMBOL_LIMIT + 1, -SYMBOL_LIMIT - 1, 2**31 - 1, -(2**31)])
def test_values_beyond_the_limit_are_refused(name, value):
    values = getattr(SYMBOLS, name).copy()
    values.flat[-1] = value
    with pytest.raises(ValueError, match=f"symbol of {name} lies outside"):
        replace(SYMBOLS, **{name: values})


@pytest.mark.parametrize("value", [SYMBOL_LIMIT, -SYMBOL_LIMIT])
def test_the_limit_itself_is_allowed(value):
    assert int(replace(SYMBOLS, z=np.full_like(SYMBOLS.z, value)).z[0, 0, 0]) == value


def test_latent_is_symbol_plus_mean():
    np.testing.assert_array_equal(SYMBOLS.latent(FRACTION_BITS), [[[128, 192, -512], [0, 0, 76832]]])


def test_check_is_the_crc_of_z_then_latent_as_little_endian_int32():
    values = [1, -700, 128, 192, -512, 0, 0, 76832]
    golden = zlib.crc32(b"".join(value.to_bytes(4, "little", signed=True) for value in values))
    assert golden == HEADER.symbol_check
    assert SYMBOLS.check(FRACTION_BITS) == golden


def test_check_does_not_depend_on_memory_order():
    turned = replace(SYMBOLS, y=np.asfortranarray(SYMBOLS.y), mean=np.asfortranarray(SYMBOLS.mean))
    assert turned.check(FRACTION_BITS) == HEADER.symbol_check


@pytest.mark.parametrize("name", ["z", "y", "mean"])
def test_check_sees_every_part(name):
    values = getattr(SYMBOLS, name).copy()
    values.flat[0] += 1
    assert replace(SYMBOLS, **{name: values}).check(FRACTION_BITS) != HEADER.symbol_check
