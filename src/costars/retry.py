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
    """plan_steps or render_steps for scene.count results, with this seed and the following ones.

    Up to `retries` further seeds are tried for those that do not show every member. A picture in which a member is
    not visible is yielded only if no seed does better, then at the end. Raises RegionError of the last seed that
    failed if there are fewer results than scene.count.
    """
    last_seed = scene.seed + scene.count + retries - 1
    second_best: list[Step | T] = []
    failure: RegionError | None = None
    num_good = 0
    for seed in range(scene.seed, last_seed + 1):
        if num_good == scene.count:
            return
        try:
            for event in steps(scene.model_copy(update={"seed": seed, "count": 1})):
                if retries and isinstance(event, Picture) and event.lost:
                    second_best.append(event)
                    break
                yield event
            else:
                num_good += 1
        except RegionError as error:
            failure = error
    second_best = second_best[: scene.count - num_good]
    yield from second_best
    if failure is not None and num_good + len(second_best) < scene.count:
        tried = f"seeds {scene.seed} to {last_seed} were tried, this is the last: " if last_seed > scene.seed else ""
        got = f"{num_good + len(second_best)} of {scene.count} pictures; " if scene.count > 1 else ""
        raise RegionError(f"{got}{tried}{failure}", failure.layout, failure.regions) from None


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
