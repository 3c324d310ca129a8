"""Measures of a picture against its original: PSNR, MS-SSIM, LPIPS, DISTS; each network is loaded at its first use."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cdcodec.errors import WeightsError

BACKBONES = {
    "alex": "alexnet_features.safetensors",
    "squeeze": "squeezenet1_1_features.safetensors",
    "vgg": "vgg16_features.safetensors",
}
"""Files of a folder of metric weights: convolutional parts of torchvision's networks, under its names features.*."""

TORCHVISION = {
    "alex": "alexnet-owt-7be5be79.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
    "vgg": "vgg16-397923af.pth",
}
"""The same networks as torchvision publishes them (https://download.pytorch.org/models/)."""

PSNR_LIMIT = 100.0
"""PSNR in dB that stands for an identical picture: JSON knows no infinity."""

MS_SSIM_SIDE = 161
"""Smallest side in pixels on which MS-SSIM with five scales and an 11×11 window is defined."""

LPIPS_SIDES = {"alex": 31, "squeeze": 17, "vgg": 16}
"""Likewise of LPIPS, whose networks pool until nothing is left of smaller ones."""


@dataclass(frozen=True)
class Measure:
    """title: as axes and tables write it, with its unit. higher: whether more is better. packages: what it imports."""

    title: str
    higher: bool
    packages: tuple[str, ...] = ()

    @property
    def arrow(self) -> str:
        return f"{self.title} {'↑' if self.higher else '↓'}"


MEASURES = {
    "psnr": Measure("PSNR in dB", True),
    "ms-ssim": Measure("MS-SSIM", True, ("pytorch_msssim",)),
    "lpips-alex": Measure("LPIPS (AlexNet)", False, ("lpips",)),
    "lpips-squeeze": Measure("LPIPS (SqueezeNet)", False, ("lpips",)),
    "lpips-vgg": Measure("LPIPS (VGG)", False, ("lpips",)),
    "dists": Measure("DISTS", False, ("DISTS_pytorch",)),
    "fid": Measure("FID (256² patches)", False, ("torch_fidelity",)),
    "kid": Measure("KID (256² patches)", False, ("torch_fidelity",)),
}
"""All measures by name. FID and KID compare two sets of pictures and are computed by cdcodec.lab.fid."""

OF_SETS = ("fid", "kid")


def psnr(a: Tensor, b: Tensor, peak: float = 255.0) -> float:
    """Peak signal-to-noise ratio in dB over all elements of two tensors of values 0…peak."""
    mse = (a.double() - b.double()).square().mean().item()
    return float("inf") if mse == 0 else 10 * torch.log10(torch.tensor(peak**2 / mse, dtype=torch.float64)).item()


def find_file(names: Collection[str], folder: Path | None) -> Path | None:
    """The first of these files in `folder`, in $CDCODEC_METRIC_WEIGHTS or among torch's checkpoints ($TORCH_HOME)."""
    told = os.environ.get("CDCODEC_METRIC_WEIGHTS")
    folders = [folder, Path(told) if told else None, Path(torch.hub.get_dir()) / "checkpoints"]
    paths = (place / name for place in folders if place is not None for name in names)
    return next((path for path in paths if path.is_file()), None)


def load_lpips(net: str, folder: Path | None = None) -> nn.Module:
    """LPIPS v0.1 (Zhang et al. 2018) with network "alex", "squeeze" or "vgg", frozen, for pictures in [-1, 1].

    The linear layers come with the package lpips; the backbone from `folder` or $CDCODEC_METRIC_WEIGHTS (safetensors
    under torchvision's names features.*), else from torchvision's own cache or download. Raises WeightsError.
    """
    import lpips

    told = folder or os.environ.get("CDCODEC_METRIC_WEIGHTS")
    path = find_file((BACKBONES[net], TORCHVISION[net]), folder)
    if path is None and told:
        raise WeightsError(f"{Path(told) / BACKBONES[net]} is missing: it holds the backbone of LPIPS {net}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = lpips.LPIPS(net=net, pnet_rand=path is not None, verbose=False)
        except OSError as error:
            raise WeightsError(
                f"the backbone of LPIPS {net} is not at hand ({error}); put {BACKBONES[net]} into a folder and name it "
                "with --metric-weights DIR or CDCODEC_METRIC_WEIGHTS"
            ) from None
    if path is not None:
        features = _read_backbone(path)
        slices = {
            f"{name}.{index}.{leaf}": f"features.{index}.{leaf}"
            for name, part in model.net.named_children()
            for index, module in part.named_children()
            for leaf in module.state_dict()
        }
        try:
            model.net.load_state_dict({ours: features[theirs] for ours, theirs in slices.items()})
        except (KeyError, RuntimeError) as error:
            raise WeightsError(f"{path} does not hold the backbone of LPIPS {net}: {error}") from None
    return model.eval().requires_grad_(False)


def load_dists(folder: Path | None = None) -> nn.Module:
    """DISTS (Ding et al. 2020), frozen, for pictures in [0, 1]; weights as for LPIPS with VGG. Raises WeightsError."""
    from DISTS_pytorch import DISTS_pt
    from torchvision.models import vgg16

    path = find_file((BACKBONES["vgg"], TORCHVISION["vgg"]), folder)
    if path is None:
        raise WeightsError(_missing("vgg"))
    with torch.device("meta"):
        network = vgg16(weights=None)
    features = {name.removeprefix("features."): value for name, value in _read_backbone(path).items()}
    try:
        network.features.load_state_dict(features, assign=True)
    except RuntimeError as error:
        raise WeightsError(f"{path} does not hold VGG16: {error}") from None
    with mock.patch.object(DISTS_pt.models, "vgg16", return_value=network):  # it would download one
        model = DISTS_pt.DISTS(load_weights=False)
    learned = torch.load(Path(DISTS_pt.__file__).with_name("weights.pt"), weights_only=True)
    model.load_state_dict(learned, strict=False)
    return model.eval().requires_grad_(False)


def usable(names: Collection[str], folder: Path | None = None) -> tuple[list[str], dict[str, str]]:
    """(those of the measures that can be taken, why each of the others cannot), without loading any of them."""
    from cdcodec.lab import fid

    good: list[str] = []
    reasons: dict[str, str] = {}
    for name in names:
        absent = [package for package in MEASURES[name].packages if importlib.util.find_spec(package) is None]
        net = name.removeprefix("lpips-") if name.startswith("lpips-") else "vgg" if name == "dists" else None
        if absent:
            reasons[name] = f"the package {absent[0]} is not installed: pip install 'cdcodec[eval]'"
        elif net and find_file((BACKBONES[net], TORCHVISION[net]), folder) is None:
            reasons[name] = _missing(net)
        elif name in OF_SETS and find_file((fid.INCEPTION,), folder) is None:
            reasons[name] = fid.MISSING
        else:
            good.append(name)
    return good, reasons


def grouped(reasons: Mapping[str, str]) -> list[str]:
    """A line for each reason, with the names it holds for."""
    return [
        f"{', '.join(name for name, other in reasons.items() if other == reason)}: {reason}"
        for reason in dict.fromkeys(reasons.values())
    ]


def versions(names: Collection[str]) -> dict[str, str]:
    """Of torch and of the packages that the measures import, by package."""
    packages = {"torch", *(package for name in names for package in MEASURES[name].packages)}
    return {package: importlib.metadata.version(package) for package in sorted(packages)}


class Judge:
    """Takes measures of decoded pictures; remembers what the networks saw in the last original.

    names: which of MEASURES, those of OF_SETS excepted. Networks run in float32 on `device`.
    """

    def __init__(self, names: Collection[str], folder: Path | None = None, device: str = "cpu") -> None:
        self.names = [name for name in MEASURES if name in names and name not in OF_SETS]
        self.folder, self.device = folder, device
        self._networks: dict[str, Any] = {}
        self._original: NDArray[np.uint8] | None = None
        self._seen: dict[str, list[Tensor]] = {}

    @torch.inference_mode()
    def __call__(self, original: NDArray[np.uint8], decoded: NDArray[np.uint8]) -> dict[str, float | None]:
        """Both uint8 (H, W, 3). None stands where a measure is not defined (MS_SSIM_SIDE, LPIPS_SIDES)."""
        if original.shape != decoded.shape:
            raise ValueError(f"pictures of different sizes: {original.shape} and {decoded.shape}")
        if original is not self._original:
            self._original, self._seen = original, {}
        a, b = (_tensor(pixels, self.device) for pixels in (original, decoded))
        takers: dict[str, Callable[[], float | None]] = {
            "psnr": lambda: min(psnr(a, b), PSNR_LIMIT),
            "ms-ssim": lambda: _ms_ssim(a, b),
            "dists": lambda: self._network("dists", load_dists)(b / 255, a / 255).item(),
        }
        values = {name: takers[name]() if name in takers else self._lpips(name, a, b) for name in self.names}
        return {name: None if value is None else round(value, 6) for name, value in values.items()}

    def _lpips(self, name: str, a: Tensor, b: Tensor) -> float | None:
        """LPIPS of b against a (0…255); what lpips.LPIPS.forward does, the original's features being kept."""
        from lpips import normalize_tensor

        net = name.removeprefix("lpips-")
        if min(a.shape[2:]) < LPIPS_SIDES[net]:
            return None
        model = self._network(name, lambda folder: load_lpips(net, folder))

        def features(x: Tensor) -> list[Tensor]:
            x = (x / 127.5 - 1).contiguous(memory_format=torch.channels_last)
            return [normalize_tensor(layer) for layer in model.net(model.scaling_layer(x))]

        if name not in self._seen:
            self._seen[name] = features(a)
        pairs = zip(model.lins, self._seen[name], features(b), strict=True)
        return sum(linear((x - y).square_()).mean().item() for linear, x, y in pairs)

    def _network(self, name: str, load: Callable[[Path | None], nn.Module]) -> Any:
        if name not in self._networks:
            self._networks[name] = load(self.folder).to(self.device).to(memory_format=torch.channels_last)
        return self._networks[name]


def _tensor(pixels: NDArray[np.uint8], device: str) -> Tensor:
    """uint8 (H, W, 3) → float32 (1, 3, H, W), 0…255."""
    return torch.from_numpy(np.array(pixels)).to(device).permute(2, 0, 1)[None].float()


def _ms_ssim(a: Tensor, b: Tensor) -> float | None:
    """MS-SSIM (Wang et al. 2003) of RGB pictures 0…255, (1, 3, H, W)."""
    from pytorch_msssim import ms_ssim

    return None if min(a.shape[2:]) < MS_SSIM_SIDE else ms_ssim(a, b, data_range=255).item()


def _missing(net: str) -> str:
    return (
        f"{BACKBONES[net]} is missing: put it, or torchvision's {TORCHVISION[net]}, into a folder and name that with "
        "--metric-weights DIR, or into $TORCH_HOME/hub/checkpoints"
    )


def _read_backbone(path: Path) -> dict[str, Tensor]:
    """Tensors features.* of a safetensors file or of torchvision's pickle. Raises WeightsError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from None
    return {name: value for name, value in tensors.items() if name.startswith("features.")}
