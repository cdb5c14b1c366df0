"""What is done with the steps of a plan or a render: run to the end, tried again, or started anew with less memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from costars.errors import ModelError, RegionError, ran_out_of_memory
from costars.scene.scene import Scene
from costars.types import Picture, Step

T = TypeVar("T")


def last(events: Iterator[object], kind: type[T]) -> T:
    """Run a step iterator to its end and return what it made."""
    for event in events:
        if isinstance(event, kind):
            return event
    raise RuntimeError(f"the iterator ended without a {kind.__name__}")


def retried(
    steps: Callable[[Scene, Path | None], Iterator[Step | T]], scene: Scene, retries: int, base: Path | None = None
) -> Iterator[Step | T]:
    """plan_steps or render_steps with up to this many further seeds while someone is missing.

    A picture in which a member was lost is given only if no seed does better.
    """
    second_best: Step | T | None = None
    for attempt in range(retries + 1):
        try:
            for event in steps(scene.model_copy(update={"seed": scene.seed + attempt}), base):
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


def spared(steps: Callable[[], Iterator[T]], lowered: Callable[[], bool]) -> Iterator[T]:
    """The steps; where the memory runs out, once more from the start after lowered() made room.

    Raises ModelError where that is not enough either.
    """
    with _memory_running_out():
        yield from steps()
        return
    if lowered():
        with _memory_running_out():
            yield from steps()
            return
    raise ModelError(
        "out of memory, also with less of the model in it; set a smaller size, --max-rows 2, --memory sequential, "
        "checkpoint.tiles=true for the decoder, method.attention_cache=replay, or run on another device"
    )


@contextmanager
def _memory_running_out() -> Iterator[None]:
    """The block ends, where the memory runs out in it, as if it had come to its end."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
