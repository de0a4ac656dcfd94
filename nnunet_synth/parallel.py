"""The same function over many items in several processes, in order."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from nnunet_synth.console import make_printable
from nnunet_synth.ctrl_c import Worker, held_back
from nnunet_synth.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


def parallel_map(function: Callable[[Item], Result], items: Sequence[Item], num_jobs: int = 1) -> Iterator[Result]:
    """Yield `function(item)` in the order of `items`; one job = in this process.

    Args:
        function: picklable (a module-level function or a partial of one). What it raises is raised here.

    Raises:
        UserError: a worker was killed, which is nearly always the memory.
    """
    if num_jobs <= 1 or len(items) <= 1:
        yield from map(function, items)
        return
    # Spawned, as nnU-Net does: forked children of a process that used torch's threads may hang.
    workers = ProcessPoolExecutor(min(num_jobs, len(items)), multiprocessing.get_context("spawn"),
                                  initializer=_prepare_worker)
    try:
        with held_back():       # here they are started
            results = workers.map(Worker(function), items, chunksize=max(1, min(16, len(items) // (4 * num_jobs))))
        yield from results
    except BrokenProcessPool as error:
        raise UserError(f"a worker process was killed, probably for lack of memory: use fewer --jobs than {num_jobs}") \
            from error
    finally:
        workers.shutdown(cancel_futures=True)


def _prepare_worker() -> None:
    make_printable()
    Worker.listen()
    _end_with_parent()


def _end_with_parent() -> None:
    """Without this the workers of a killed process would wait for ever, and finish what they were writing first."""
    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
