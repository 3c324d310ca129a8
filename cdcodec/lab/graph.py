"""A step of training as one CUDA graph: two thousand small kernels cost more time to start than to run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 3


class Graphed:
    """A function on tensors that stay in their places, run as it is for the first calls, then captured and replayed.

    It must wait for no value on the GPU, and what it keeps between calls (an optimiser's moments) must be there after
    one call. Gives a copy of the 0-dim tensors that the function gives.
    """

    def __init__(self, function: Callable[[], dict[str, Tensor]]) -> None:
        self.function, self.calls = function, 0
        self.stream = torch.cuda.Stream()
        self.graph: torch.cuda.CUDAGraph | None = None
        self.found: dict[str, Tensor] = {}

    @property
    def captured(self) -> bool:
        return self.graph is not None

    def __call__(self) -> dict[str, Tensor]:
        if self.graph is None and self.calls < WARM_UP:
            self.calls += 1
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                found = self.function()
            torch.cuda.current_stream().wait_stream(self.stream)
            return found
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.found = self.function()
        self.graph.replay()
        return {name: value.clone() for name, value in self.found.items()}
