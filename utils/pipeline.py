"""Long streams of photos: work sent ahead to a pool, and batches of bounded size."""

import os
from collections import deque


def map_ahead(submit, items, ahead):
    """Results of submit(item).result() in the order of the items.

    Args:
        submit: from an item to a concurrent.futures.Future, such as a pool's.
        items: iterable, read only as far as results are asked for and `ahead` items beyond.
        ahead: how many further items are on their way while one result is waited for.
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


def batches(items, pixels_of, most_pixels, most=None):
    """Consecutive items of at most `most_pixels` together, a larger one on its own.

    Args:
        items: iterable, read as far as the current batch and one item beyond it.
        pixels_of: from an item to its number of pixels.
        most_pixels: of a batch of several items.
        most: items of a batch; without a limit where None.
    Yields:
        lists of items.
    """
    batch, total = [], 0
    for item in items:
        pixels = pixels_of(item)
        if batch and (len(batch) == most or total + pixels > most_pixels):
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
    """Processes or threads to start: at most one a core that this process may use."""
    return min(asked, available_cores())
