"""Ray Data: the same files as without it, from workers that hold one model; on a local cluster, where Ray is."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cdcodec.ray
from cdcodec import codec
from cdcodec.errors import CdcodecError, OutputError, WeightsError
from cdcodec.files import PlanError
from cdcodec.weights import load_model


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / ("deep" if i % 2 else "") / f"{i}.png")
    (tmp_path / "photos" / "broken.png").write_bytes(b"no picture")
    return tmp_path / "photos"


@pytest.fixture
def cluster(monkeypatch):
    """Two workers' room on this machine."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(Path(cdcodec.__file__).parents[1]))
    ray.init(num_cpus=2, object_store_memory=100 << 20, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_folder_there_and_back_on_a_local_cluster(photos, tmp_path, tiny_weights, cluster):
    model = load_model(tiny_weights)
    common = {"root": str(tiny_weights), "workers": 2}
    lines = list(cdcodec.ray.encode(str(photos), str(tmp_path / "coded"), lam=0.0064, **common))
    assert len(lines) == 6
    made = {line["output"]: line for line in lines if "error" not in line}
    assert sorted(made) == sorted(str(tmp_path / "coded" / f"{'deep/' if i % 2 else ''}{i}.cdc") for i in range(5))
    for output, line in made.items():
        with Image.open(line["input"]) as image:
            assert Path(output).read_bytes() == codec.encode(np.asarray(image), model, 0.0064)
        assert line["bytes"] == Path(output).stat().st_size
    (failure,) = (line["error"] for line in lines if "error" in line)
    assert failure.startswith("not a picture")
    again = list(cdcodec.ray.encode(str(photos), str(tmp_path / "coded"), skip_existing=True, **common))
    assert sum(line.get("skipped", False) for line in again) == 5
    painted = list(cdcodec.ray.decode(str(tmp_path / "coded"), str(tmp_path / "back"), settings={"steps": 0}, **common))
    assert len(painted) == 5
    data = (tmp_path / "coded" / "deep" / "1.cdc").read_bytes()
    with Image.open(tmp_path / "back" / "deep" / "1.png") as image:
        assert np.abs(np.asarray(image).astype(int) - codec.decode(data, model, steps=0)[0]).max() <= 3


def test_what_is_wrong_is_said_before_any_work(photos, tmp_path, tiny_weights, monkeypatch):
    out = str(tmp_path / "coded")
    with pytest.raises(WeightsError, match="lies outside the ladder"):
        cdcodec.ray.encode(str(photos), out, lam=9.0, root=str(tiny_weights))
    with pytest.raises(PlanError, match="holds nothing to work on"):
        cdcodec.ray.decode(str(photos), out)
    with pytest.raises(CdcodecError, match="xyz names no picture format"):
        cdcodec.ray.decode(str(photos), out, format="xyz")
    Image.new("RGB", (4, 4)).save(photos / "0.jpg")
    with pytest.raises(OutputError, match="would both be written to"):
        cdcodec.ray.encode(str(photos), out, root=str(tiny_weights))


def test_without_ray_one_line_says_so(photos, tmp_path, tiny_weights, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(CdcodecError, match=r"^ray is not installed: pip install 'cdcodec\[ray\]'$"):
        cdcodec.ray.encode(str(photos), str(tmp_path / "coded"), root=str(tiny_weights))
