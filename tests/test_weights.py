"""Checkpoints on disk: what is wrong with them is told in one line, and nothing wrong is ever loaded."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cdcodec import weights
from cdcodec.config import PRESETS, ModelConfig
from cdcodec.errors import WeightsError
from cdcodec.nets.networks import Networks
from cdcodec.weights import Checkpoint, load_model

RUNG = "compact-x/lambda-0.0128.safetensors"
BASE = "compact-x/base.safetensors"


@pytest.fixture
def root(tiny_weights: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    return Path(shutil.copytree(tiny_weights, tmp_path / "weights"))


def rewrite(path: Path, tensors: dict[str, torch.Tensor] | None = None, **metadata: str) -> None:
    """The file with other tensors (and their hash) or other metadata."""
    with safe_open(path, "pt") as file:
        known = file.metadata()
    given = load_file(path) if tensors is None else tensors
    save_file(given, path, {**known, "tensors": weights.tensor_hash(given, given), **metadata})


def refuses(root: Path, message: str) -> None:
    with pytest.raises(WeightsError, match=message) as error:
        load_model(root, device="cpu")
    assert "\n" not in str(error.value)


def test_compact_x_keeps_its_tensors() -> None:
    """The names and shapes that training runs and shipped weights have; a change here orphans them."""
    state = Networks(PRESETS["compact-x"]).state_dict()
    text = "\n".join(f"{name} {tuple(value.shape)}" for name, value in sorted(state.items()))
    assert len(state) == 251
    assert hashlib.sha256(text.encode()).hexdigest() == (
        "903fe0cee6d57ae1fa90248596e59ba5f09eb2dc4729e8eb4277c710dba00b60"
    )


def test_configs_go_to_json_and_back() -> None:
    for config in PRESETS.values():
        assert ModelConfig.from_json(config.to_json()) == config
    kinds = ('{"latent": "many"}', '{"more": 1}', "[]", '{"blocks": 3}', '{"clamp": 1}', '{"ladder": ["a"]}')
    ranges = ('{"ladder": []}', '{"ladder": [2.0, 1.0]}', '{"fraction_bits": 16}', '{"unshuffle": 0}',
              '{"unet_depth": 999}', '{"embedding": 10000000}', '{"unet_widths": []}', '{"hyper_widths": [8]}',
              '{"stride": 32, "padding": 32}', '{"unshuffle": 16, "stride": 64}',
              '{"analysis_widths": [8, 8]}', '{"blocks": "toy"}',
              '{"schedule": "cosine"}', '{"condition": -2}', '{"embedding": 0}', '{"unet_widths": [8]}',
              '{"lambda_scale": 0.0}', '{"density_weights": [0.5, 0.5]}', '{"density_scales": [0.0]}',
              '{"density_weights": [0.7, 0.7], "density_scales": [1.0, 1.0]}')  # fmt: skip
    for wrong in (*kinds, *ranges):
        with pytest.raises(ValueError, match="ModelConfig"):
            ModelConfig.from_json(wrong)


def test_a_flipped_byte_anywhere_in_the_tensors_is_noticed(root: Path) -> None:
    for name in (BASE, RUNG):
        path = root / name
        sound = path.read_bytes()
        for position in (len(sound) - 1, len(sound) - len(sound) // 50, len(sound) - 5):
            path.write_bytes(sound[:position] + bytes([sound[position] ^ 1]) + sound[position + 1 :])
            refuses(root, "damaged|another base")
            verdicts = dict(weights.verify(root))
            assert verdicts[path] != "ok"
        path.write_bytes(sound)
    load_model(root, device="cpu")
    assert {verdict for _, verdict in weights.verify(root)} == {"ok"}


def test_cut_files_are_refused(root: Path) -> None:
    for name in (BASE, RUNG):
        path = root / name
        sound = path.read_bytes()
        for length in (0, 7, 8, 100, len(sound) // 2, len(sound) - 1):
            path.write_bytes(sound[:length])
            refuses(root, path.name)
        path.write_bytes(sound)


def test_a_base_of_others_is_refused(root: Path) -> None:
    rewrite(root / BASE, steps="1")
    refuses(root, r"belongs to another base\.safetensors")
    (root / BASE).unlink()
    refuses(root, "cannot be read")


def whole(root: Path, **changes: torch.Tensor | None) -> None:
    """A self-contained checkpoint of the tiny model instead of the ladder, with tensors changed or (None) left out."""
    floats, integers, config = weights.load_tensors(root, preset="compact-x")
    tensors = {name: value.clone() for name, value in {**floats, **integers}.items()}
    for name, value in changes.items():
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
    shutil.rmtree(root)
    labels = {"format": weights.FORMAT, "preset": "compact-x", "lambda": "0.0128", "rho": "0.9"}
    digest = weights.tensor_hash(integers, integers)
    weights.save(
        tensors, root / RUNG, {**labels, "config": config.to_json(), "bitstream": digest}
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unet.stem.weight": None}, r"unet\.stem\.weight is missing"),
        ({"unet.more": torch.zeros(1)}, r"unet\.more is not known"),
        ({"unet.stem.weight": torch.zeros(3)}, r"unet\.stem\.weight holds torch\.float32 of \(3,\)"),
        ({"unet.stem.weight": torch.zeros(3, dtype=torch.int32)}, r"unet\.stem\.weight holds torch\.int32"),
        ({"integer.0.weight": None}, r"integer\.0\.weight"),
        ({"integer.0.shift": torch.zeros(64, dtype=torch.uint8)}, "exact"),
        ({"integer.0.weight": torch.zeros(64, 16, 3, 3)}, "integer"),
        ({"tables.y.counts": torch.zeros(256, 4)}, "table"),
        ({"integer.stage1.out.bias": None}, r"integer\.stage1\.out\.bias"),
        ({"integer.stage1.given.weight": torch.zeros(8, 16, 3, 3, dtype=torch.int16)}, "of a stage do not follow"),
        ({"integer.stage1.around.weight": torch.zeros(8, 8, 1, 1, dtype=torch.int16)}, "of a stage do not follow"),
        ({"integer.stage1.told.weight": torch.zeros(8, 10, 3, 3, dtype=torch.int16)}, "of a stage do not fit"),
        ({"integer.thresholds": torch.zeros(255, dtype=torch.int32)}, "ascending"),
        ({"integer.slope": torch.tensor(-1, dtype=torch.int32)}, "slope"),
        ({"integer.slope": torch.tensor([0.5])}, "slope"),
        ({"integer.medians": torch.zeros(3, dtype=torch.int32)}, "medians"),
        ({"tables.y.counts": torch.zeros(1024, dtype=torch.int32)}, "table"),
        ({"tables.z.length": None}, r"tables\.z\.length"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(root: Path, changes: dict[str, torch.Tensor], message: str) -> None:
    whole(root, **changes)
    refuses(root, message)


def test_a_whole_checkpoint_loads_as_the_ladder_did(root: Path, tiny: Checkpoint) -> None:
    whole(root)
    again = load_model(root, device="cpu", precision="float32")
    assert (again.id, again.config) == (tiny.id, tiny.config)
    assert load_model(root, checkpoint=tiny.id, device="cpu").id == tiny.id


def test_a_missing_or_extra_tensor_in_a_rung_is_refused(root: Path) -> None:
    tensors = load_file(root / RUNG)
    rewrite(root / RUNG, {**tensors, "more": torch.zeros(1)})
    refuses(root, "does not hold exactly")
    rewrite(root / RUNG, {name: value for name, value in tensors.items() if name != "log_gain"})
    refuses(root, "does not hold exactly")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"config": "{}}"}, "architecture"), ({"config": '{"latent": 1.5}'}, "architecture"), ({"format": "x"}, "format")],
)
def test_metadata_that_lies_is_refused(root: Path, change: dict[str, str], message: str) -> None:
    whole(root)
    rewrite(root / RUNG, **change)
    refuses(root, message)


@pytest.mark.parametrize("change", [{"lambda": "much"}, {"bitstream": "xyz"}])
def test_a_rung_that_does_not_say_what_it_is_is_refused(root: Path, change: dict[str, str]) -> None:
    rewrite(root / RUNG, **change)
    refuses(root, "does not say what it is")


def test_verify_goes_on_behind_a_rung_that_does_not_say_what_it_is(root: Path) -> None:
    rewrite(root / RUNG, **{"lambda": "much"})
    verdicts = {path.name: verdict for path, verdict in weights.verify(root)}
    assert "does not say what it is" in verdicts.pop(Path(RUNG).name)
    assert set(verdicts.values()) == {"ok"}
    assert len(verdicts) == len(list((root / "compact-x").iterdir())) - 1


def test_rungs_of_different_shapes_are_refused(root: Path) -> None:
    tensors = load_file(root / RUNG)
    rewrite(root / RUNG, {**tensors, "log_gain": torch.zeros(3)})
    refuses(root, "do not fit together: their log_gain differ in shape")


@pytest.mark.parametrize("stated", ['{"format": ["x"]}', '{"lambda": []}', "[" * 100_000 + "]" * 100_000])
def test_metadata_that_is_no_text_is_refused(root: Path, stated: str) -> None:
    header = f'{{"__metadata__": {stated}}}'.encode()
    (root / RUNG).write_bytes(struct.pack("<Q", len(header)) + header)
    refuses(root, "not a cdcodec checkpoint")


class Malice:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.path}",)


def test_pickles_are_refused_and_run_nothing(root: Path, tmp_path: Path) -> None:
    for name in (BASE, RUNG):
        path = root / name
        sound = path.read_bytes()
        path.write_bytes(pickle.dumps(Malice(tmp_path / "trap")))
        refuses(root, "not a cdcodec checkpoint|another base")
        torch.save({"x": Malice(tmp_path / "trap")}, path)
        refuses(root, "not a cdcodec checkpoint|another base")
        path.write_bytes(sound)
    assert not (tmp_path / "trap").exists()


def test_a_failed_or_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "folder" / "x.safetensors"
    weights.save({"a": torch.ones(2)}, target, {"format": weights.FORMAT})
    before = target.read_bytes()
    for trouble, raised in ((KeyboardInterrupt(), KeyboardInterrupt), (OSError("disk full"), WeightsError)):

        def fail(*_: object, trouble: BaseException = trouble) -> None:
            raise trouble

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", fail)
            with pytest.raises(raised):
                weights.save({"a": torch.zeros(9)}, target, {"format": weights.FORMAT})
        assert [path.name for path in target.parent.iterdir()] == ["x.safetensors"]
        assert target.read_bytes() == before


@pytest.mark.parametrize("wrong", [{"device": "cuda:1"}, {"device": "mps"}, {"precision": "bf16"}, {"tile": 100}])
def test_settings_that_do_not_exist_are_refused(tiny_weights: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be auto"):
        load_model(tiny_weights, **{"device": "cpu", **wrong})


def test_interpolation_between_rungs(tiny: Checkpoint) -> None:
    ladder, module = tiny.ladder, tiny.model.networks.ladder
    for i in (0, 3, len(ladder) - 1):
        at = tiny.model.networks.condition(ladder[i])
        assert torch.allclose(at.condition[0], module.condition[i], atol=1e-5)
        assert torch.allclose(at.gain.flatten(), module.log_gain[i].exp(), rtol=1e-4)
    middle = tiny.model.networks.condition((ladder[2] * ladder[3]) ** 0.5)
    assert torch.allclose(middle.condition[0], (module.condition[2] + module.condition[3]) / 2, atol=1e-5)
    assert torch.allclose(middle.gain.flatten(), ((module.log_gain[2] + module.log_gain[3]) / 2).exp(), rtol=1e-4)


def test_rungs_taken_away_shorten_the_ladder(root: Path, tiny: Checkpoint) -> None:
    (root / "compact-x" / "lambda-0.0768.safetensors").unlink()
    (root / "compact-x" / "lambda-0.0032.safetensors").unlink()
    shorter = load_model(root, device="cpu")
    assert shorter.ladder == (0.0024, 0.0048, 0.0064, 0.0128, 0.0256, 0.0512)
    assert shorter.id == tiny.id
    with pytest.raises(WeightsError, match="outside the ladder"):
        shorter.check_lambda(0.0768)
    with pytest.raises(WeightsError, match="λ = 1e"):  # no float32 holds it
        shorter.check_lambda(1e60)


def test_the_folder_is_found(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert weights.find_weights(root) == root
    monkeypatch.setenv("CDCODEC_WEIGHTS", str(root))
    assert weights.find_weights() == root
    with pytest.raises(WeightsError, match="no weights in"):
        weights.find_weights(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match="no weights in"):
        weights.find_weights(root / "compact-x")  # a preset's own folder
    with pytest.raises(WeightsError, match=r"no checkpoint of paper-x in .*; there is compact-x"):
        load_model(root, preset="paper-x")


def test_listing_reads_metadata_alone(root: Path, tiny: Checkpoint) -> None:
    path = root / RUNG
    path.write_bytes(path.read_bytes()[:-1])
    listed = weights.list_checkpoints(root)
    assert [info.lam for info in listed] == list(tiny.ladder)
    assert {(info.preset, info.rho, info.id, info.bpp) for info in listed} == {("compact-x", "0…0.9", tiny.id, 1.0)}


def test_a_ladder_of_more_digits_than_a_file_keeps(tiny: Checkpoint) -> None:
    """λ is checked as the file will hold it: what may be encoded may be decoded."""
    for lam in (0.123456789, 0.0128):
        model: Any = SimpleNamespace(config=replace(tiny.config, ladder=(lam,)))
        one = replace(tiny, model=model)
        assert one.check_lambda(one.check_lambda(lam)) == float(str(np.float32(lam)))
        with pytest.raises(WeightsError, match="alone"):
            one.check_lambda(2 * lam)


def test_two_files_of_one_rung(root: Path, tiny: Checkpoint) -> None:
    shutil.copy(root / RUNG, (root / RUNG).with_name("lambda-0.0128-old.safetensors"))
    assert load_model(root, device="cpu").ladder == tiny.ladder
