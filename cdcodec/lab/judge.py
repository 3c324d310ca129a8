"""Puts the judge that `encode --effort` asks beside weights: python -m cdcodec.lab.judge weights/compact-x

SqueezeNet 1.1 and LPIPS's weights for it, from the package lpips and torchvision's network, in bfloat16.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch
from torch import nn

from cdcodec.errors import CdcodecError
from cdcodec.lab.metrics import load_lpips
from cdcodec.options import FOLDER
from cdcodec.weights import BASE, FORMAT, JUDGE, read_metadata, save

LICENCE = "BSD-3-Clause (torchvision's SqueezeNet 1.1), BSD-2-Clause (LPIPS 0.1)"


def tensors_of(lpips: nn.Module) -> dict[str, torch.Tensor]:
    """What nets.judge.Judge takes, of `load_lpips("squeeze")`; float32."""
    named = dict(lpips.named_parameters())
    layers = {f"features.{name.split('.', 2)[2]}": p for name, p in named.items() if name.startswith("net.")}
    lins = {f"lins.{k}": named[f"lin{k}.model.1.weight"].flatten() for k in range(7)}
    return {name: p.detach() for name, p in (layers | lins).items()}


@click.command()
@click.argument("folder", type=FOLDER)
@click.option("--metric-weights", metavar="DIR", type=FOLDER, help="Where SqueezeNet's weights lie.")
def main(folder: Path, metric_weights: Path | None) -> None:
    """Write judge.safetensors into a preset's folder of weights."""
    try:
        about = read_metadata(folder / BASE)
        metadata = {"format": FORMAT, "preset": about["preset"], "config": about["config"], "licence": LICENCE}
        tensors = tensors_of(load_lpips("squeeze", metric_weights))
        rounded = {name: value.to(torch.bfloat16).contiguous() for name, value in tensors.items()}
        click.echo(save(rounded, folder / JUDGE, metadata))
    except CdcodecError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
