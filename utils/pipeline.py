"""Long work: sent ahead to a pool, in batches of bounded size, on every core, until a signal."""

import os
import signal
from collections import deque
from contextlib import contextmanager

# Ctrl-C, a job scheduler, and a terminal that is closed (Windows has no SIGHUP).
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP")
                if hasattr(signal, name)]


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
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


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
