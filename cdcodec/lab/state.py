"""The saved state of a run: a file that is either the last whole one or not there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from cdcodec.errors import TrainingError

STATE = "state.pt"
KEPT = {"recipe", "step", "trained", "data", "ramp", "parameters", "average", "optimisers"}
"""What every state has in it; a critic only some."""


def load_state(run: Path) -> dict[str, Any]:
    """The saved state of a run folder (weights_only: nothing is executed). Raises TrainingError."""
    try:
        state: dict[str, Any] = torch.load(run / STATE, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise TrainingError(f"{run} holds no training run ({STATE} is missing)") from None
    except Exception:
        raise TrainingError(f"{run / STATE} cannot be read: it is damaged, or not the state of a run") from None
    absent = KEPT - set(state if isinstance(state, dict) else ())
    if absent:
        raise TrainingError(f"{run / STATE} is not the state of a training run: it has no {min(absent)}")
    return state


def save_state(run: Path, state: dict[str, Any]) -> None:
    """Written beside and renamed: a run that is killed, or fills the disk, keeps its last whole state.

    Raises TrainingError.
    """
    beside = run / (STATE + ".part")
    try:
        with beside.open("wb") as file:
            torch.save(state, file)
        os.replace(beside, run / STATE)
    except (OSError, RuntimeError) as error:  # of a full disk, torch makes a RuntimeError
        beside.unlink(missing_ok=True)
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        raise TrainingError(f"the state of the run cannot be saved, the last one is kept: {reason}") from None
