"""A training leaves no tensor alive but those of its result."""

from costars.train.loop import train


def run(task, stop_after=None):
    events = train(task)
    for i, _ in enumerate(events):
        if i == stop_after:
            events.close()


def test_training_leaves_no_tensor(make_task, short_recipe, count_tensors):
    task = make_task(short_recipe("lora", steps=1))
    run(task)
    before = count_tensors()
    for stop_after in (None, 0):
        run(task, stop_after)
        assert count_tensors() == before
