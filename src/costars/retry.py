"""Run step iterators: to their end, again with other seeds, or again with less memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from costars.errors import ModelError, ran_out_of_memory
from costars.scene.scene import Scene
from costars.types import Picture, RegionError, Step

T = TypeVar("T")


def last(events: Iterator[object], kind: type[T]) -> T:
    """Run a step iterator to its end and return the result, which is the first event of this kind."""
    for event in events:
        if isinstance(event, kind):
            return event
    raise RuntimeError(f"the iterator ended without a {kind.__name__}")


def retry_seeds(steps: Callable[[Scene], Iterator[Step | T]], scene: Scene, retries: int) -> Iterator[Step | T]:
    """plan_steps or render_steps, with up to this many further seeds while a member is missing.

    A picture in which a member is not visible is yielded only if no seed does better. Raises RegionError of the
    last seed where none shows the cast.
    """
    second_best: Step | T | None = None
    for attempt in range(retries + 1):
        try:
            for event in steps(scene.model_copy(update={"seed": scene.seed + attempt})):
                if isinstance(event, Picture) and event.lost:
                    second_best = second_best or event
                    break
                yield event
            else:
                return
        except RegionError as error:
            if attempt == retries and second_best is None:
                tried = f"seeds {scene.seed} to {scene.seed + retries} were tried, this is the last: "
                raise RegionError(f"{tried if retries else ''}{error}", error.layout, error.regions) from None
    if second_best is not None:
        yield second_best


def retry_with_less_memory(steps: Callable[[], Iterator[T]], lower_memory: Callable[[], bool]) -> Iterator[T]:
    """The steps; where memory runs out, again from the start for as long as lower_memory() can make room.

    Raises ModelError where that is not enough.
    """
    while True:
        with _end_when_out_of_memory():
            yield from steps()
            return
        if not lower_memory():
            raise ModelError(
                "out of memory, also with few rows per call and as little of the model on the device as possible; "
                "set a smaller size or method.attention_cache=replay, or use another device"
            )


@contextmanager
def _end_when_out_of_memory() -> Iterator[None]:
    """End the block, without an error, where memory runs out in it."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
