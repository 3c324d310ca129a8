"""The golden files of the shipped weights replay; and the replay sees what is wrong."""

from __future__ import annotations

import json

import golden
import pytest

from cdcodec import codec, weights
from cdcodec.errors import CdcodecError
from cdcodec.weights import load_model


def of_the_shipped_weights(part: str) -> None:
    """AssertionError where the golden files are not those of weights/: new weights want new ones."""
    made, shipped = golden.facts(golden.FOLDER)[part], golden.identity(golden.WEIGHTS)[part]
    assert made == shipped, "the golden files are of other weights than weights/ holds: make vectors"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_golden_files_of_the_shipped_weights(precision):
    of_the_shipped_weights("bitstream")
    model = load_model(golden.WEIGHTS, device="cpu", precision=precision)
    golden.replay_symbols(golden.FOLDER, model)
    of_the_shipped_weights("tensors")
    golden.replay_pixels(golden.FOLDER, model)


@pytest.fixture(scope="module")
def made(tiny_weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    golden.make(tiny_weights, folder)
    return folder


def test_what_is_made_replays(made, tiny, tiny_weights):
    golden.replay_symbols(made, tiny)
    golden.replay_pixels(made, tiny)
    assert int(golden.facts(made)["bitstream"], 16) == tiny.id == weights.find(tiny_weights).id
    assert all(path.stat().st_size < 30_000 for path in made.iterdir())


def test_other_symbols_or_pixels_are_seen(made, tiny, tmp_path, monkeypatch):
    known = golden.facts(made)
    real = codec.decode
    for changed, message in ((slice(None, None, 4), "astronaut: RMSE"), (slice(0, 1), "astronaut: a peak of")):

        def other(*args, changed=changed, **settings):
            pixels, chunks = real(*args, **settings)
            pixels = pixels.copy()
            pixels.reshape(-1)[changed] ^= 4
            return pixels, chunks

        monkeypatch.setattr(codec, "decode", other)
        with pytest.raises(AssertionError, match=message):
            golden.replay_pixels(made, tiny)
    wrong = json.loads(json.dumps(known).replace(known["symbol_checks"]["coffee"], "01234567"))
    monkeypatch.setattr(golden, "facts", lambda folder: wrong)
    with pytest.raises(AssertionError, match="coffee: other symbols"):
        golden.replay_symbols(made, tiny)
    real = type(tiny.model.integer).parameters
    monkeypatch.setattr(type(tiny.model.integer), "parameters", lambda *a: (real(*a)[0], real(*a)[1] + 1, real(*a)[2]))
    with pytest.raises(CdcodecError, match="other symbols"):
        golden.replay_symbols(made, tiny)
