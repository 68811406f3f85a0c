"""What fits: peak memory and time of one unlearning step of a large network, beside a plain fine-tuning step.

The steps are those of the real loop (`vdu.bench.memory_modes`), one image per term, gradient checkpointing on. Every
mode runs in a process of its own, for its peaks (`vdu.bench.peak_memory`): ``held`` is what nobody can take from it,
``peak`` counts what is mapped of the model's and the posterior's files too. A mode that cannot fit leaves a row that
says so: by its estimate before it starts, or by the first allocation that the system refuses it. Time is the process's
own on the processor (summed over threads), which other work on the machine disturbs less than the clock on the wall.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel

from vdu.bench.memory_modes import (
    MODES,
    SIZES,
    Mode,
    RandomBackbone,
    make_objective,
    make_settings,
    random_network,
    write_model,
)
from vdu.bench.peak_memory import held_peak, peak_bytes
from vdu.bench.processes import processes
from vdu.errors import VduError, nearest, out_of_memory
from vdu.loop import run_loop
from vdu.output import require_space
from vdu.provenance import made_by
from vdu.records import read_record, write_record
from vdu.weights.parameters import trained_copy

__all__ = ["run_memory"]

LEFT_TO_OTHERS = 2 * 10**9
GB = 10**9
ROUNDS = 3
BYTES_IN_FILES = 6  # of each parameter: its weight in float32, its variance in bfloat16


class Measured(NamedTuple):
    """``status`` is "measured" or why there are no figures; ``held`` is without what is mapped from files."""

    status: str
    held_bytes: int | None = None
    peak_bytes: int | None = None
    cpu_seconds: float | None = None


def _limit_memory(budget: int | None) -> None:
    """Have allocations beyond ``budget`` bytes refused, so that nothing else on the machine is pushed out."""
    if budget is not None and sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (budget, budget))


def _network(mode: Mode, backbone: RandomBackbone, lora_rank: int) -> Any:
    """What the mode trains; plain training keeps no original."""
    if mode.step != "plain":
        return trained_copy(backbone, mode.parameters, lora_rank, 0, gradient_checkpointing=True)
    network = backbone.network.train().requires_grad_(True)
    network.enable_gradient_checkpointing()
    return network


def _measure(mode: Mode, folder: Path, budget: int | None) -> Measured:
    """The median over steps, without the first one, in which Adam's state is made. ``folder``: the model's files."""
    mapped = sum(file.stat().st_size for file in folder.iterdir())  # the limit counts them, though they take nothing
    backbone, settings = RandomBackbone(UNet2DConditionModel.from_pretrained(folder)), make_settings(mode, ROUNDS)
    finished: list[float] = []
    mark: Callable[..., None] = lambda *_: finished.append(time.process_time())  # noqa: E731
    try:
        with held_peak() as held:
            _limit_memory(None if budget is None else budget + mapped)
            network = _network(mode, backbone, settings.lora_rank)
            objective = make_objective(mode, backbone, network, folder)
            run_loop(network, objective, settings, None, precision=mode.precision, on_step=mark)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return Measured(f"does not fit: more than the {(budget or 0) / GB:.1f} GB that may be used")
    return Measured("measured", held[0], peak_bytes(), median(b - a for a, b in pairwise(finished)))


def _in_fresh_process(work: Callable[..., Any], *given: Any) -> Any:
    """What ``work`` returns of what it is ``given``; None where the system ended the process."""
    with processes(1) as pool:
        try:
            return pool.submit(work, *given).result()
        except BrokenProcessPool:
            return None


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
    with torch.device("meta"):
        original = random_network(size)
    backbone = RandomBackbone(original)
    network = trained_copy(backbone, mode.parameters, make_settings(mode, 1).lora_rank, 0)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return sum(p.numel() for p in backbone.network.parameters()), trained


def _gigabytes(count: int | None) -> float | None:
    return None if count is None else round(count / GB, 3)


def _row(name: str, size: str, folder: Path) -> dict[str, Any]:
    mode, budget = MODES[name], _budget()
    count, trained = _counts(mode, size)
    estimate = mode.estimate(count, trained)
    if budget is not None and estimate > budget:
        found = Measured(f"does not fit: about {estimate / GB:.1f} GB, and {budget / GB:.1f} GB may be used")
    else:
        ended = Measured("does not fit: the system ended the process")
        found = _in_fresh_process(_measure, mode, folder, budget) or ended
    return {
        "mode": name,
        **asdict(mode),
        "images": mode.images,
        "parameters_count": count,
        "trained_count": trained,
        "estimate_gb": round(estimate / GB, 2),
        "held_gb": _gigabytes(found.held_bytes),
        "peak_gb": _gigabytes(found.peak_bytes),
        "cpu_seconds": None if found.cpu_seconds is None else round(found.cpu_seconds, 3),
        "status": found.status,
        "timed_steps": ROUNDS - 1,
        "threads": torch.get_num_threads(),
    }


def _beside_plain(row: dict[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
    """``row`` with its ratios to the plain step; None where one of the two was not measured."""
    for ratio, figure in (("held_ratio", "held_gb"), ("peak_ratio", "peak_gb"), ("time_ratio", "cpu_seconds")):
        known = row[figure] is not None and plain[figure]
        row[ratio] = round(row[figure] / plain[figure], 3) if known else None
    return row


def run_memory(results: Path, size: str, say: Callable[[str], None], *, limit: int | None = None) -> None:
    """Measure the modes that are not measured yet, at most ``limit``, and write ``memory-<size>/<mode>.json``.

    Raises `VduError` for a size that is not known.
    """
    if size not in SIZES:
        raise VduError(f"unknown size {size!r}: {nearest(size, SIZES)}")
    known = {name: _measured(results, size, name) for name in MODES}
    missing = [name for name, row in known.items() if row is None][:limit]
    if not missing:
        return
    with TemporaryDirectory(prefix="vdu-memory-") as made:
        count, _ = _counts(MODES["plain"], size)
        require_space(Path(made), BYTES_IN_FILES * count)
        if _in_fresh_process(write_model, size, Path(made)) is None:
            raise VduError("the system ended the process that writes the model: free some memory and run again")
        for name in missing:
            row = _row(name, size, Path(made))
            known[name] = _beside_plain(row, known["plain"] or row)
            write_record(_record_path(results, size, name), {"row": row} | made_by())
            say(f"{name}: {row['status']}, {row['held_gb']} GB, {row['cpu_seconds']} processor seconds a step")


def _record_path(results: Path, size: str, name: str) -> Path:
    return results / f"memory-{size}" / f"{name}.json"


def _measured(results: Path, size: str, name: str) -> dict[str, Any] | None:
    """The row of a mode that has figures."""
    path = _record_path(results, size, name)
    row = read_record(path).get("row") if path.is_file() else None
    return row if row is not None and row["status"] == "measured" else None
