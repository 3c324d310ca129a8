"""The exactness contract of SPEC.md, section 11: the same symbols whatever threads, precision and instruction sets."""

from __future__ import annotations

import sys
from pathlib import Path

import exactness
import pytest
import torch

from cdcodec import codec
from cdcodec.weights import load_model


def test_integers_of_compact_x_size_for_any_number_of_threads():
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert exactness.synthetic() == exactness.SYNTHETIC
    finally:
        torch.set_num_threads(threads)


def test_the_default_dtype_does_not_matter():
    try:
        torch.set_default_dtype(torch.float64)
        assert exactness.synthetic() == exactness.SYNTHETIC
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, list[Path]]:
    return exactness.examples(tmp_path_factory.mktemp("exact"))


def check(setting: str, files: tuple[Path, list[Path]]) -> None:
    weights, paths = files
    answer = exactness.ask(sys.executable, setting, weights, paths)
    assert answer == {
        "torch": torch.__version__, "files": exactness.expected(paths), "synthetic": exactness.SYNTHETIC
    }  # fmt: skip


def test_the_oldest_instruction_sets(files):
    check("all of the oldest", files)


@pytest.mark.slow
@pytest.mark.parametrize("setting", list(exactness.SETTINGS))
def test_settings(setting, files):
    check(setting, files)




def test_the_examples_say_something(files):
    weights, paths = files
    model = load_model(weights, device="cpu")
    for path, least in zip(paths, (50, 3, 50), strict=True):
        symbols = codec.read_symbols(path.read_bytes(), model)[2]
        assert len({*symbols.index.flat}) >= least
        assert symbols.mean.any()
        assert symbols.y.any()
