"""The wall clock that all phases of a run obey."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Shares:
    """When phases end, as shares of the run's seconds; rendering and training overlap.

    The values give, of 480 s, about 90 s to the autoencoder beside segmenter and judge, and 330 s to the base.
    """

    vae: float = 0.23
    segmenter: float = 0.2
    judge: float = 0.27
    decoder: float = 0.36  # the decoder alone, on frozen latents, beside the base
    base: float = 0.95  # what is left is for figures, sheets and saving


@dataclass
class Stop:
    """Set in a process that is asked to end: its clock then shows that all time is over."""

    asked: bool = False


@dataclass(frozen=True)
class Clock:
    """began is time.monotonic() at the start of the run, the same in all its processes."""

    began: float
    seconds: float
    shares: Shares = Shares()
    stop: Stop = field(default_factory=Stop)

    def elapsed(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.began

    def now(self) -> float:
        """As elapsed, but infinite in a process that was asked to end."""
        return math.inf if self.stop.asked else self.elapsed()

    def until(self, share: float) -> float:
        """Seconds left until this share of the run; negative when it is over."""
        return share * self.seconds - self.now()


@dataclass(frozen=True)
class Span:
    """A phase from start to end, in seconds of the clock; progress in it is what learning rates follow."""

    clock: Clock
    start: float
    end: float

    @classmethod
    def from_now(cls, clock: Clock, end_share: float, least_share: float = 0.0) -> Span:
        """From this moment until a share of the run, but for at least the other share: starting may take long."""
        now = clock.elapsed()
        return cls(clock, now, max(now + least_share * clock.seconds, end_share * clock.seconds, now + 1e-3))

    def progress(self) -> float:
        """0 at the start of the phase, 1 at its end, never more."""
        return min(1.0, (self.clock.now() - self.start) / (self.end - self.start))

    def over(self) -> bool:
        """Whether the phase has used up its time."""
        return self.clock.now() >= self.end
