"""A bounded table that keeps what was used last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

from costars.model.offload import release_memory

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class RecentlyUsed(Generic[K, V]):
    """Keeps the last `most` values that were asked for; the others are made anew."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._values: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The value of the key; a new one is made after those that were not used lately are dropped."""
        if key in self._values:
            self._values.move_to_end(key)
        else:
            self._make_room()
            self[key] = make()
        return self._values[key]

    def _make_room(self) -> None:
        if len(self) >= self.most:
            while len(self) >= self.most:
                self._values.popitem(last=False)
            release_memory()

    def __setitem__(self, key: K, value: V) -> None:
        self._values.pop(key, None)
        self._make_room()
        self._values[key] = value

    def update(self, change: Callable[[V], V]) -> None:
        """Replace every value."""
        for key, value in self._values.items():
            self._values[key] = change(value)

    def clear(self) -> None:
        """Drop all values."""
        self._values.clear()

    def __contains__(self, key: K) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[V]:
        return iter(list(self._values.values()))

    def __len__(self) -> int:
        return len(self._values)
