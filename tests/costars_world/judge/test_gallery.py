"""The gallery ranks an identity among distinct others of its class."""

import pytest
import torch

from costars_world.judge.gallery import Gallery
from costars_world.judge.judge import JUDGE_WEIGHTS, load_judge

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def judge():
    return load_judge(JUDGE_WEIGHTS, CPU)


def test_gallery_has_distinct_identities_of_the_class(judge):
    gallery = Gallery(judge, num_distractors=5)
    identity, _ = gallery.class_references("cat")[2]
    assert len(gallery.distractors(identity)) == 5
    assert len(Gallery(judge, num_distractors=100_000).class_references("cat")) == 5 * 3 * 4
    reference = gallery.reference_embedding(identity)
    assert gallery.rank(reference, reference, identity) == 1
    assert gallery.rank(-reference, reference, identity) == 6
