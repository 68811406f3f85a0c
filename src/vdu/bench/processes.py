"""Processes of a benchmark, which end with what started them: by an error, an interruption, or its own death."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process
from threading import Thread

__all__ = ["processes"]


def _end_with_parent() -> None:
    """Watch the process that started this one from a thread of its own: work for nobody would go on for hours."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


@contextmanager
def processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """At most ``count`` fresh processes; an exception inside the block ends them in the midst of their work."""
    others = active_children()
    with ProcessPoolExecutor(count, get_context("spawn"), initializer=_end_with_parent) as pool:
        try:
            yield pool
        except BaseException:
            for child in active_children():
                if child not in others:
                    child.terminate()
            raise
