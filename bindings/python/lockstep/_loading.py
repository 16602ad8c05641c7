"""How far the loading of checkpoints is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from . import _library as c
from ._library import library


@contextmanager
def loading(progress: Callable[[int, int], None] | None) -> Iterator[None]:
    """Tells of the loading of checkpoints, by this thread, within the block: models, trainers, audits, runs.

    Args:
        progress: called after each tensor with the values of the checkpoint that have been read, and how many it has;
            None: nobody is told.

    Returns:
        a context manager.

    Raises:
        what `progress` raised, after the block.

    Example:
        >>> shares = []
        >>> with loading(lambda done, total: shares.append(done / total)):
        ...     model = Model(checkpoint, "fp16")
        >>> shares[-1]
        1.0
    """
    failed: list[BaseException] = []

    def tell(_: object, done: int, total: int) -> None:
        try:
            if not failed:
                progress(done, total)  # type: ignore[misc]
        except BaseException as error:  # noqa: BLE001: it cannot pass through the library
            failed.append(error)

    observer = c.LoadingObserver() if progress is None else c.LoadingObserver(tell)
    library.lockstep_observe_loading(observer, None)
    try:
        yield
    finally:
        library.lockstep_observe_loading(c.LoadingObserver(), None)
    if failed:
        raise failed[0]
