"""Tasks run in one process or in several."""

import pytest

from costars_world.training.parallel import run_parallel


@pytest.mark.parametrize(("tasks", "workers"), [([-1, 2, -3], 1), ([-1], 2), ([], 2), ([-1, 2, -3], 2)])
def test_every_task_gives_one_result(tasks, workers):
    assert sorted(run_parallel(abs, tasks, workers)) == sorted(map(abs, tasks))
