"""What a run tells: a progress bar, log.jsonl (one object a line) and curves.png drawn from it."""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from cdcodec import files
from cdcodec.lab.objective import Phase


class RunLog:
    """Appends to run/log.jsonl and keeps a progress bar on stderr where that is a terminal."""

    def __init__(self, run: Path, steps: int, done: int, quiet: bool) -> None:
        self.path = run / "log.jsonl"
        _mend(self.path, done)
        self._file = self.path.open("a", encoding="utf-8")
        self._last, self._at = done, time.monotonic()
        self._quiet = quiet
        self._bar = click.progressbar(
            length=steps, label="train", file=sys.stderr, show_pos=True, item_show_func=lambda text: text or "",
            hidden=quiet or not sys.stderr.isatty(),
        )
        self._bar.__enter__()
        self._bar.update(done)

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def note(self, text: str) -> None:
        self._write({"time": round(time.time(), 1), "note": text})
        if not self._quiet:
            click.echo(text, err=True)

    def step(self, step: int, phase: Phase, metrics: dict[str, float]) -> None:
        now = time.monotonic()
        speed = (step - self._last) * phase.batch / (now - self._at)
        values = {name: float(f"{value:.5g}") for name, value in metrics.items()}
        line = {"time": round(time.time(), 1), "step": step, "phase": phase.kind, "crops_per_second": round(speed, 1)}
        self._write({**line, **values})
        self._bar.update(step - self._last, f"loss {metrics['loss']:.4f}, {speed:.0f} crops/s")
        self._last, self._at = step, now

    def validation(self, step: int, rows: list[dict[str, Any]]) -> None:
        self._write({"time": round(time.time(), 1), "step": step, "validation": rows})
        self._at = time.monotonic()
        draw_curves(self.path)

    def close(self) -> None:
        self._bar.__exit__(None, None, None)
        self._file.close()


def _mend(log: Path, done: int) -> None:
    """Take out what a killed run left behind its saved state: a torn line, and steps that come again."""
    before = log.read_bytes() if log.exists() else b""
    lines = (line for line in before.splitlines(keepends=True) if _is_whole(line))
    after = b"".join(line for line in lines if json.loads(line).get("step", 0) <= done)
    if after != before:
        files.write(str(log), after, force=True)


def _is_whole(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and isinstance(json.loads(line), dict)
    except ValueError:
        return False


def draw_curves(log: Path) -> None:
    """curves.png beside a log.jsonl: loss over steps, and rate against PSNR of each validation."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "loss" in line]
    checks = [line for line in lines if "validation" in line]
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5))
    for kind in dict.fromkeys(line["phase"] for line in steps):
        part = [line for line in steps if line["phase"] == kind]
        left.plot([p["step"] for p in part], [p["loss"] for p in part], label=kind, linewidth=0.8)
    left.set(xlabel="step", ylabel="loss", yscale="log")
    if steps:
        left.legend()
    for i, check in enumerate(checks):
        rows = check["validation"]
        shade = 0.8 * (1 - (i + 1) / len(checks))
        right.plot([r["bpp"] for r in rows], [r["psnr"] for r in rows], ".-", color=(shade, shade, shade),
                   label=f"step {check['step']}" if i in (0, len(checks) - 1) else None)
    right.set(xlabel="bits per pixel (estimated)", ylabel="PSNR in dB, one step, ρ = 0", xscale="log")
    if checks:
        right.legend()
    figure.tight_layout()
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=80)
    plt.close(figure)
    files.write(str(log.parent / "curves.png"), drawn.getvalue(), force=True)
