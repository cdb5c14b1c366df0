"""A bounded table drops what was not used lately, before something new is made."""

import weakref

from costars.model.recently_used import RecentlyUsed


class Thing:
    pass


def test_what_was_not_used_lately_is_dropped_before_a_new_one_is_made():
    kept, seen = RecentlyUsed(2), []

    def make():
        assert sum(thing() is not None for thing in seen) <= 1
        thing = Thing()
        seen.append(weakref.ref(thing))
        return thing

    for key in "abac":
        kept.get(key, make)
    assert "a" in kept and "c" in kept and "b" not in kept and len(kept) == 2
    assert [thing() is not None for thing in seen] == [True, False, True]
    kept["a"] = Thing()
    assert len(kept) == 2 and seen[0]() is None
    kept.update(lambda thing: None)
    assert list(kept) == [None, None]
    kept.clear()
    assert len(kept) == 0 and kept.get("a", make) is not None
