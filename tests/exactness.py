"""Do other settings, and other releases of PyTorch, derive the same symbols from the same files?

    python tests/exactness.py                                   a table over threads, precisions and instruction sets
    python tests/exactness.py --python old/bin/python           also with another environment's PyTorch
    python tests/exactness.py --weights weights x.cdc y.cdc     with real weights and files, not the tests' own

Every line is a process of its own. It decodes the files' symbols, which their headers' symbol checks guard, and
evaluates the integer hyper-synthesis at the size of compact-x on numbers from NumPy's frozen RandomState, alone and in
a batch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

SYNTHETIC = 127876521
"""CRC-32 of what `synthetic` computes."""

SETTINGS: dict[str, tuple[dict[str, str], list[str]]] = {
    "as it is": ({}, []),
    "1 thread": ({}, ["--threads", "1"]),
    "2 threads": ({}, ["--threads", "2"]),
    "5 threads": ({}, ["--threads", "5"]),
    "float32": ({}, ["--precision", "float32"]),
    "bfloat16": ({}, ["--precision", "bfloat16"]),
    "oneDNN: SSE 4.1": ({"ONEDNN_MAX_CPU_ISA": "SSE41"}, []),
    "oneDNN: AVX2": ({"ONEDNN_MAX_CPU_ISA": "AVX2"}, []),
    "oneDNN: AVX-512, no AMX": ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, []),
    "ATen: scalar": ({"ATEN_CPU_CAPABILITY": "default"}, []),
    "ATen: AVX2": ({"ATEN_CPU_CAPABILITY": "avx2"}, []),
    "MKL: SSE 4.2": ({"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}, []),
    "MKL: AVX2": ({"MKL_ENABLE_INSTRUCTIONS": "AVX2"}, []),
    "MKL: conditional reproducibility, compatible": ({"MKL_CBWR": "COMPATIBLE"}, []),
    "MKL: conditional reproducibility, AVX2": ({"MKL_CBWR": "AVX2"}, []),
    "all of the oldest": (
        {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
        ["--threads", "1", "--precision", "float32"],
    ),
}


def synthetic() -> int:
    """CRC-32 of the scale index, begun with the symbol check, of a picture of 384 × 256 pixels, in the architecture of
    compact-x.

    Raises RuntimeError if a batch of two gives anything else than one picture alone.
    """
    import torch

    from cdcodec.config import PRESETS
    from cdcodec.nets.hyperprior import HyperSynthesis
    from cdcodec.nets.integer import LEAVES, IntegerHyperSynthesis

    config, random = PRESETS["compact-x"], np.random.RandomState(5)
    twin = IntegerHyperSynthesis.of(HyperSynthesis(config), np.geomspace(0.1, 256, 255), config)
    tensors = {"integer.thresholds": torch.arange(255, dtype=torch.int32) * 400 - 50_000}
    for name, value in twin.tensors().items():
        leaf, shape = name.rpartition(".")[2], tuple(value.shape)
        if leaf in LEAVES:
            low, high = {"weight": (-(2**10), 2**10), "bias": (-(2**20), 2**20), "shift": (10, 16)}[leaf]
            tensors[name] = torch.from_numpy(random.randint(low, high, shape)).to(value.dtype)
    integer = IntegerHyperSynthesis.from_tensors(tensors, config)
    z = random.randint(-40, 41, (2, config.hyper, 4, 6)).astype(np.int32)
    y = random.randint(-9, 10, config.latent * 16 * 24).astype(np.int32)
    for i, alone in enumerate(integer.parameters(z[i : i + 1], (16, 24)) for i in range(2)):
        if not all(torch.equal(a[0], b[i]) for a, b in zip(alone, integer.parameters(z, (16, 24)), strict=True)):
            raise RuntimeError("a batch gives other integers than one picture alone")
    coded = integer(z[0], (16, 24), lambda places, index, mean: y[places])
    return zlib.crc32(coded.index.tobytes(), coded.check(config.fraction_bits))


def child(options: argparse.Namespace) -> dict[str, Any]:
    """What this process derives: the symbol check of every file, read from its symbols, and that of `synthetic`."""
    import torch

    from cdcodec import codec
    from cdcodec.weights import load_model

    if options.threads:
        torch.set_num_threads(options.threads)
    model = load_model(options.weights, device=options.device, precision=options.precision)
    checks = []
    for path in options.files:
        symbols = codec.read_symbols(path.read_bytes(), model)[2]
        checks.append(symbols.check(model.config.fraction_bits))
    return {"torch": torch.__version__, "files": checks, "synthetic": synthetic()}


def ask(python: str, setting: str, weights: Path, files: list[Path], device: str = "cpu") -> dict[str, Any]:
    """The answer of a process under one of SETTINGS; {"error": …} where it fails."""
    variables, arguments = SETTINGS[setting]
    root = Path(__file__).resolve().parents[1]
    command = [python, __file__, "--child", "--device", device, "--weights", str(weights), *arguments, *map(str, files)]
    environment = {name: value for name, value in os.environ.items() if name not in {"ONEDNN_MAX_CPU_ISA", "MKL_CBWR"}}
    process = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root,
                             env={**environment, "PYTHONPATH": str(root), **variables})  # fmt: skip
    if process.returncode:
        return {"torch": "?", "error": (process.stderr.strip().splitlines() or ["no word"])[-1]}
    answer: dict[str, Any] = json.loads(process.stdout)
    return answer


def examples(folder: Path) -> tuple[Path, list[Path]]:
    """The tests' tiny weights, and three files made with them: (folder of weights, files)."""
    from conftest import write_tiny_weights
    from PIL import Image

    from cdcodec import codec
    from cdcodec.weights import load_model

    (folder / "weights").mkdir()
    weights = write_tiny_weights(folder / "weights")
    model = load_model(weights, device="cpu", precision="float32")
    files = []
    for number, (width, height) in enumerate([(300, 200), (33, 17), (640, 480)]):
        small = np.random.RandomState(number).randint(0, 256, (9, 9, 3)).astype(np.uint8)
        picture = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        files.append(folder / f"{number}.cdc")
        files[-1].write_bytes(codec.encode(np.asarray(picture), model, (0.0024, 0.0128, 0.0064)[number]))
    return weights, files


def expected(files: list[Path]) -> list[int]:
    from cdcodec.bits import container

    return [container.read_header(path.read_bytes()).symbol_check for path in files]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--python", action="append", default=[sys.executable], help="of another environment, too")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="auto", help=argparse.SUPPRESS)  # these three are for its own processes
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options)))
        return 0
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        weights, files = (options.weights, options.files) if options.files else examples(Path(folder))
        right = expected(files)
        print("| PyTorch | setting | files | hyper-synthesis |\n|---|---|---|---|")
        for python in options.python:
            for setting in SETTINGS:
                answer = ask(python, setting, weights, files, options.device)
                same = [answer.get("files") == right, answer.get("synthetic") == SYNTHETIC]
                wrong += not all(same)
                words = answer.get("error") or " | ".join("same" if good else "OTHER" for good in same)
                print(f"| {answer['torch']} | {setting} | {words} |", flush=True)
    print(f"\n{wrong} mismatches")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
