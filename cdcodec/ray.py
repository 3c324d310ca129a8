"""Folders of any number of pictures, on any number of machines, by Ray Data: pip install 'cdcodec[ray]'.

    import cdcodec.ray
    lines = list(cdcodec.ray.encode("/shared/photos", "/shared/coded", lam=0.0128, workers=8))

Workers are Ray actors wherever the cluster has room. Each holds one model and reads and writes its files itself, whole
or not at all, under paths that all machines share; only names and figures travel. cdcodec is installed on all of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator
from functools import lru_cache, partial
from typing import Any

from cdcodec import batch, files, image, weights
from cdcodec.config import DEFAULT_LAMBDA
from cdcodec.errors import CdcodecError

BLOCK = 8
"""Files that a worker takes at a time."""


def encode(
    source: str, out: str, *, lam: float = DEFAULT_LAMBDA, rho: float | None = None, strip: bool = False,
    root: str | None = None, **cluster: Any,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Code every picture below the folder `source` as out/….cdc; its tree is kept.

    Gives a line for each as they are done, in any order: what `cdcodec encode --json` prints. A picture that cannot be
    coded has an "error" in its line and stops no other. rho: at which the files shall decode best (None: the weights'
    default). root: weights folder (None: those that ship).
    cluster: workers (1), cpus and gpus of each (1, 0); force or skip_existing for outputs that are there already.
    Raises CdcodecError, files.PlanError, WeightsError before any work begins.
    """
    root = str(weights.find_weights(root).resolve())
    weights.load_model(root, device="cpu").check_lambda(lam)
    make = partial(_encode, root, lam, rho, strip)
    return _run(_plan(source, out, ".cdc", image.readable_extensions(), {".cdc"}), make, **cluster)


def decode(
    source: str, out: str, *, format: str = "png", root: str | None = None,
    settings: dict[str, Any] | None = None, **cluster: Any,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Paint every .cdc file below the folder `source` as out/….`format`. The rest is as of `encode`.

    settings: steps, gamma, rho and seed, as `cdcodec.decode` takes them.
    """
    writable = image.writable_extensions()
    if f".{format}" not in writable:
        raise CdcodecError(f"{format} names no picture format that can be written here")
    make = partial(_decode, str(weights.find_weights(root).resolve()), settings or {})
    return _run(_plan(source, out, f".{format}", {".cdc"}, writable), make, **cluster)


def _plan(source: str, out: str, suffix: str, sources: Collection[str], targets: Collection[str]) -> list[files.Job]:
    """With absolute paths: a worker's current folder is another one."""
    jobs = files.plan([os.path.abspath(source)], os.path.abspath(out), suffix=suffix, source_suffixes=sources,
                      target_suffixes=targets)  # fmt: skip
    files.prepare(jobs, create=True)
    return jobs


def _encode(root: str | None, lam: float, rho: float | None, strip: bool) -> batch.Task:
    load = lru_cache(1)(lambda: (weights.load_model(root), lam))
    return batch.Encode(load, strip=strip, settings={"rho": rho})


def _decode(root: str | None, settings: dict[str, Any]) -> batch.Task:
    load = lru_cache(2)(lambda checkpoint: weights.load_model(root, checkpoint=checkpoint))
    return batch.Decode(load, settings)


class _Worker:
    def __init__(self, make: Callable[[], batch.Task], options: batch.Options) -> None:
        self.task, self.options = make(), options

    def __call__(self, block: dict[str, Any]) -> dict[str, list[str]]:
        jobs = [files.Job(str(a), str(b)) for a, b in zip(block["source"], block["target"], strict=True)]
        lines: list[str] = []
        batch.run(jobs, self.task, self.options, lambda facts: lines.append(json.dumps(facts)))
        return {"line": lines}


def _run(jobs: list[files.Job], make: Callable[[], batch.Task], *, workers: int = 1, cpus: float = 1, gpus: float = 0,
         **options: bool) -> Iterator[dict[str, Any]]:  # fmt: skip
    try:
        from ray import data
    except ModuleNotFoundError as error:
        raise CdcodecError(f"{error.name} is not installed: pip install 'cdcodec[ray]'") from error
    rows = data.from_items([vars(job) for job in jobs])
    done = rows.map_batches(_Worker, fn_constructor_args=(make, batch.Options(**options)), batch_size=BLOCK,
                            concurrency=workers, num_cpus=cpus, num_gpus=gpus)  # fmt: skip
    return (json.loads(row["line"]) for row in done.iter_rows())


__all__ = ["decode", "encode"]
