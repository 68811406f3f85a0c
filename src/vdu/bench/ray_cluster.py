"""Runs of a suite on the machines of a Ray cluster (an optional extra).

Every machine needs the same vdu; what a run makes comes back to the one that asked, which writes the files. Images that
a suite does not ship must lie in the same folder on all of them.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from vdu.bench.suite import Run, Suite
from vdu.errors import VduError

if TYPE_CHECKING:
    from vdu.bench.runner import Made, Worker

__all__ = ["on_cluster"]

ANSWER_SECONDS = 5.0


def _connect(address: str) -> Any:
    """The library, connected. Raises `VduError` where it is not installed or no cluster answers."""
    try:
        import ray
    except ImportError as error:
        raise VduError("--cluster needs Ray: pip install 'vdu[cluster]'") from error
    if not ray.is_initialized():
        try:
            if ":" in address:  # Ray itself would try for many minutes
                host, _, port = address.rpartition(":")
                socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError, OverflowError) as error:
            raise VduError(f"no Ray cluster at {address!r}: start one with `ray start --head`") from error
    return ray


def on_cluster(worker: type[Worker], suite: Suite, runs: list[Run], jobs: int, address: str) -> Iterator[Made]:
    """What ``jobs`` workers on the cluster make, as it comes; each takes its share of this machine's threads."""
    ray = _connect(address)
    from ray.util import ActorPool

    threads = max(1, torch.get_num_threads() // jobs)
    actor = ray.remote(num_cpus=threads)(worker)
    workers = [actor.remote(suite, threads) for _ in range(min(jobs, len(runs)))]
    yield from ActorPool(workers).map_unordered(lambda one, run: one.make.remote(run), runs)
