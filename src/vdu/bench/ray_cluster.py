"""Runs of a suite on the machines of a Ray cluster (an optional extra).

Every machine needs the same vdu; what a run makes comes back to the one that asked, which writes the files. Images that
a suite does not ship must lie in the same folder on all of them.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

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
        raise VduError("--cluster needs Ray: pip install ray") from error
    if not ray.is_initialized():
        try:
            if ":" in address:  # Ray itself would try for many minutes
                host, _, port = address.removeprefix("ray://").rpartition(":")
                socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError, OverflowError) as error:
            raise VduError(f"no Ray cluster at {address!r}: start one with `ray start --head`") from error
    return ray


def on_cluster(worker: type[Worker], suite: Suite, runs: Iterable[Run], jobs: int, address: str) -> Iterator[Made]:
    """What ``jobs`` workers on the cluster make, as it comes; each takes its share of the cores, within one machine.

    Raises `VduError` where no cluster answers, and where a machine is lost.
    """
    ray = _connect(address)
    from ray.util import ActorPool

    cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    # No more than the smallest machine has: a worker that fits nowhere would wait for ever.
    threads = max(1, min(sum(cores) // jobs, min(filter(None, cores), default=1)))
    actor = ray.remote(num_cpus=threads)(worker)
    waiting = iter(runs)
    first = [*islice(waiting, jobs)]
    pool = ActorPool([actor.remote(suite, threads) for _ in first])
    try:
        for run in chain(first, waiting):  # none waits in the pool: it may be made elsewhere meanwhile
            if not pool.has_free():
                yield pool.get_next_unordered()
            pool.submit(lambda one, run: one.make.remote(run), run)
        while pool.has_next():
            yield pool.get_next_unordered()
    except ray.exceptions.RayError as error:
        said = str(error).strip().splitlines()[-1]
        raise VduError(f"a worker of the cluster failed ({said}): run again, what is finished stays") from error
