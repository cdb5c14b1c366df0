"""Bounded spinning of OpenMP's threads."""

import pytest

from costars.threads import BOUNDED_WAITING, bound_spinning


def test_spinning_is_bounded_by_default():
    environment = {"HOME": "/root"}
    bound_spinning(environment)
    assert environment == {"HOME": "/root"} | BOUNDED_WAITING


@pytest.mark.parametrize("name", BOUNDED_WAITING)
def test_policy_of_the_user_is_kept(name):
    environment = {name: "mine"}
    bound_spinning(environment)
    assert environment == {name: "mine"}
