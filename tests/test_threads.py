"""Bounded spinning of OpenMP's threads."""

import os
import subprocess
import sys

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


def test_importing_costars_sets_the_policy_before_torch_is_loaded():
    code = "import os, sys, costars; print('torch' in sys.modules, os.environ.get('GOMP_SPINCOUNT'))"
    unset = {name: value for name, value in os.environ.items() if name not in BOUNDED_WAITING}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=unset)
    assert done.stdout.split() == ["False", BOUNDED_WAITING["GOMP_SPINCOUNT"]]
