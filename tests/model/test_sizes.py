"""A size far from the one that a model was made for is noted."""

from dataclasses import replace

import pytest

from costars.model.sizes import describe_size


@pytest.mark.parametrize(
    ("name", "own", "size", "said"),
    [
        ("builtin", 128, (128, 128), None),
        ("builtin", 128, (256, 256), "made for 128x128, and other sizes often give repeated or extra figures; it also"),
        ("builtin", 128, (1024, 1024), "takes 64 times as long"),
        ("builtin", 128, (128, 64), "blurred or missing figures; use 128x128 (it was trained on no other size)"),
        ("sd15", 512, (512, 768), None),
        ("sd15", 512, (1024, 1024), "size 1024x1024: the model was made for 512x512"),
        ("sdxl", 1024, (1216, 832), None),
        ("sdxl", 1024, (512, 512), "size 512x512: the model was made for 1024x1024"),
    ],
)
def test_sizes_that_a_model_was_not_made_for_are_noted(tiny, name, own, size, said):
    notes = describe_size(size, replace(tiny.info, name=name, size_px=(own, own)))
    assert len(notes) == (said is not None) and (said is None or said in notes[0])
