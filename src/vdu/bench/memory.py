"""What fits: peak memory and time of one unlearning step of a large network, beside a plain fine-tuning step.

The steps are those of the real loop (`vdu.bench.memory_modes`), one image per term, gradient checkpointing on. Every
mode runs in a process of its own, for its peak (`vdu.bench.peak_memory`). A mode that cannot fit leaves a row that says
so: by its estimate before it starts, or by the first allocation that the system refuses it. Time is the process's own
on the processor (summed over threads), which other work on the machine disturbs less than the clock on the wall.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from vdu.bench.memory_modes import MODES, SIZES, Mode, RandomBackbone, make_objective, make_settings
from vdu.bench.peak_memory import peak_bytes
from vdu.errors import VduError, nearest
from vdu.loop import run_loop
from vdu.provenance import made_by
from vdu.records import read_record, write_record
from vdu.weights.parameters import trained_copy

__all__ = ["run_memory"]

LEFT_TO_OTHERS = 4 * 10**9
GB = 10**9
ROUNDS = 3


class Measured(NamedTuple):
    """``status`` is "measured" or why there are no figures."""

    status: str
    peak_bytes: int | None = None
    cpu_seconds: float | None = None


def _limit_memory(budget: int | None) -> None:
    """Have allocations beyond ``budget`` bytes refused, so that nothing else on the machine is pushed out."""
    if budget is not None and sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (budget, budget))


def _measure(mode: Mode, size: str, budget: int | None) -> Measured:
    """The median over steps, without the first one, in which Adam's state is made."""
    RandomBackbone(size, "meta")  # takes no memory, but what is imported on demand is there before the limit
    _limit_memory(budget)
    finished: list[float] = []
    try:
        backbone, settings = RandomBackbone(size), make_settings(mode, ROUNDS)
        if mode.step == "plain":  # plain training keeps no original
            network = backbone.network.train().requires_grad_(True)
            network.enable_gradient_checkpointing()
        else:
            network = trained_copy(backbone, mode.parameters, settings.lora_rank, 0, gradient_checkpointing=True)
        objective = make_objective(mode, backbone, network)
        mark: Callable[..., None] = lambda *_: finished.append(time.process_time())  # noqa: E731
        run_loop(network, objective, settings, None, precision=mode.precision, on_step=mark)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        return Measured(f"does not fit: more than the {(budget or 0) / GB:.1f} GB that may be used")
    return Measured("measured", peak_bytes(), median(b - a for a, b in pairwise(finished)))


def _in_fresh_process(mode: Mode, size: str, budget: int | None) -> Measured:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_measure, mode, size, budget).result()
        except BrokenProcessPool:
            return Measured("does not fit: the system ended the process")


def _budget() -> int | None:
    """What may be taken without swapping and with something left to others; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    return None if free is None else max(0, free - LEFT_TO_OTHERS)


def _counts(mode: Mode, size: str) -> tuple[int, int]:
    """P and T, counted without allocating."""
    backbone = RandomBackbone(size, "meta")
    network = trained_copy(backbone, mode.parameters, make_settings(mode, 1).lora_rank, 0)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return sum(p.numel() for p in backbone.network.parameters()), trained


def _row(name: str, size: str) -> dict[str, Any]:
    mode, budget = MODES[name], _budget()
    count, trained = _counts(mode, size)
    estimate = mode.estimate(count, trained)
    if budget is not None and estimate > budget:
        found = Measured(f"does not fit: about {estimate / GB:.1f} GB, and {budget / GB:.1f} GB may be used")
    else:
        found = _in_fresh_process(mode, size, budget)
    return {
        "mode": name,
        **asdict(mode),
        "images": mode.images,
        "parameters_count": count,
        "trained_count": trained,
        "estimate_gb": round(estimate / GB, 2),
        "peak_gb": None if found.peak_bytes is None else round(found.peak_bytes / GB, 3),
        "cpu_seconds": None if found.cpu_seconds is None else round(found.cpu_seconds, 3),
        "status": found.status,
        "timed_steps": ROUNDS - 1,
        "threads": torch.get_num_threads(),
    }


def _beside_plain(row: dict[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
    """``row`` with its ratios to the plain step; None where one of the two was not measured."""
    for ratio, figure in (("peak_ratio", "peak_gb"), ("time_ratio", "cpu_seconds")):
        known = row[figure] is not None and plain[figure]
        row[ratio] = round(row[figure] / plain[figure], 3) if known else None
    return row


def run_memory(results: Path, size: str, say: Callable[[str], None], *, limit: int | None = None) -> None:
    """Measure the modes that are not measured yet, at most ``limit``, and write ``memory-<size>/<mode>.json``.

    Raises `VduError` for a size that is not known.
    """
    if size not in SIZES:
        raise VduError(f"unknown size {size!r}: {nearest(size, SIZES)}")
    plain: dict[str, Any] | None = None
    for name in MODES:
        path = results / f"memory-{size}" / f"{name}.json"
        row = read_record(path).get("row") if path.is_file() else None
        if row is None or row["status"] != "measured":
            if limit == 0:
                return
            limit = None if limit is None else limit - 1
            row = _row(name, size)
            row = _beside_plain(row, plain or row)
            write_record(path, {"row": row} | made_by())
            say(f"{name}: {row['status']}, {row['peak_gb']} GB, {row['cpu_seconds']} processor seconds a step")
        plain = plain or row
