"""Long work: sent ahead to a pool, in batches of bounded size, on every core, until a signal."""

import math
import os
import signal
from collections import deque
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path

# Ctrl-C, a job scheduler, and a terminal that is closed (Windows has no SIGHUP).
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP")
                if hasattr(signal, name)]
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # "QUOTA PERIOD" in microseconds, or "max PERIOD"


def map_ahead(submit, items, ahead):
    """Results of submit(item).result() in the order of the items.

    Args:
        submit: function (item) -> concurrent.futures.Future, such as a pool's submit.
        items: iterable; read only `ahead` items further than results are asked for.
        ahead: number of further items that are worked on while the caller waits for one.
    Yields:
        results.
    """
    waiting = deque()
    for item in items:
        waiting.append(submit(item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def done_now(function, item):
    """A Future of function(item), which is called at once, in this thread."""
    future = Future()
    try:
        future.set_result(function(item))
    except Exception as error:  # raised where the result is asked for, as with a pool
        future.set_exception(error)
    return future


def batches(items, pixels_of, max_pixels, max_count=None):
    """Consecutive items of at most `max_pixels` together; a larger item is a batch of its own.

    Args:
        items: iterable; read one item further than the current batch.
        pixels_of: function (item) -> number of pixels.
        max_pixels: most pixels that a batch of several items may have.
        max_count: items of a batch; None for no limit.
    Yields:
        lists of items.
    """
    batch, total = [], 0
    for item in items:
        pixels = pixels_of(item)
        if batch and (len(batch) == max_count or total + pixels > max_pixels):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += pixels
    if batch:
        yield batch


def available_cores():
    """CPU cores that this process may use; a container's quota counts as rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores, _cores_of_quota() or cores)


def _cores_of_quota():
    """What `docker --cpus` and the like leave to this process, by control group; None for all."""
    with suppress(OSError, ValueError):  # no Linux, an older kernel, or no quota: "max"
        quota, period = CPU_QUOTA.read_text(encoding="ascii").split()
        return max(1, math.ceil(int(quota) / int(period)))
    return None


def check_threads(threads):
    """Raise a ValueError unless this is a number of threads."""
    if not isinstance(threads, int) or threads < 1:
        raise ValueError(f"threads must be a whole number of at least 1, got {threads!r}")


def worker_count(asked):
    """Processes or threads to start: at most one for each core that this process may use."""
    return min(asked, available_cores())


@contextmanager
def stop_on_interrupt():
    """Yield a function () -> bool: whether Ctrl-C or another signal asked to stop.

    So what is under way can be finished and saved. A second Ctrl-C ends the process at once.
    """
    asked = []

    def handle(number, _):
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, handle) for number in STOP_SIGNALS
              if signal.getsignal(number) != signal.SIG_IGN}  # nohup ignores SIGHUP
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
