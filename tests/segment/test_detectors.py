"""Detectors return the boxes and scores of transformers, and selection keeps the best box of each figure."""

import numpy as np
import pytest
import torch
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st

from costars.segment.detectors import run_grounding_dino, run_owlv2, select_detections, suppress_overlaps


def test_grounding_dino_equals_transformers_and_scores_the_best_token(load_tiny, make_image):
    dino, image = load_tiny("dino"), make_image(80, 48)
    boxes, scores = run_grounding_dino(dino, image, ["Woman", "red dog"])
    processor = hf.GroundingDinoProcessor(dino.image_processor, dino.tokenizer)
    inputs = processor(images=image, text="woman. red dog.", return_tensors="pt")
    out = dino.model(**inputs)
    (theirs,) = processor.post_process_grounded_object_detection(out, threshold=0.0, target_sizes=[(48, 80)])
    assert np.allclose(boxes * [80, 48, 80, 48], theirs["boxes"], atol=1e-3)
    # [CLS] woman . red dog . [SEP]
    probabilities = out.logits[0].sigmoid().numpy()
    assert np.allclose(scores, np.stack([probabilities[:, 1], probabilities[:, [3, 4]].max(axis=1)], axis=1), atol=1e-6)
    assert (probabilities[:, [0, 2, 5, 6]].max(axis=1) > scores.max(axis=1)).any()


def test_owlv2_equals_transformers(load_tiny, make_image):
    owl, image, phrases = load_tiny("owl"), make_image(48, 80), ["woman", "dog", "hat"]
    boxes, scores = run_owlv2(owl, image, phrases, "a photo of a {}")
    processor = hf.Owlv2Processor(owl.image_processor, owl.tokenizer)
    texts = [f"a photo of a {phrase}" for phrase in phrases]
    inputs = processor(images=image, text=[texts], max_length=16, return_tensors="pt")
    (theirs,) = processor.post_process_grounded_object_detection(
        owl.model(**inputs), threshold=0.0, target_sizes=[(80, 48)], text_labels=[texts]
    )
    assert np.allclose(boxes * [48, 80, 48, 80], theirs["boxes"], atol=1e-3)
    assert np.allclose(scores.max(axis=1), theirs["scores"], atol=1e-6)
    assert [texts[i] for i in scores.argmax(axis=1)] == theirs["text_labels"]


@pytest.mark.parametrize("name", ["dino", "owl"])
def test_scores_do_not_depend_on_the_order_of_phrases(load_tiny, make_image, name):
    one = load_tiny(name)

    def scores_of(*phrases):
        return (
            run_grounding_dino(one, make_image(), phrases)
            if name == "dino"
            else run_owlv2(one, make_image(), phrases, "{}")
        )

    _, ab = scores_of("woman", "red dog")
    _, ba = scores_of("red dog", "woman")
    assert np.abs(ab[:, 0] - ab[:, 1]).max() > 1e-3
    assert np.allclose(ab, ba[:, ::-1], atol=1e-4)


@pytest.mark.parametrize("name", ["dino", "owl"])
def test_boxes_are_correct_on_a_non_square_image(load_tiny, stub_model, make_image, name):
    """The box is (20, 10, 60, 30) on 80 x 40 px; OWLv2 boxes are shares of 80 x 80."""
    centre = (0.5, 0.5, 0.5, 0.5) if name == "dino" else (0.5, 0.25, 0.5, 0.25)
    out = {"pred_boxes": torch.tensor([[centre]]), "logits": torch.zeros(1, 1, 16 if name == "dino" else 1)}
    one = stub_model(load_tiny(name), lambda **_: out)
    detect = run_grounding_dino if name == "dino" else lambda *given: run_owlv2(*given, "{}")
    boxes, scores = detect(one, make_image(80, 40), ["dog"])
    assert (boxes * [80, 40, 80, 40]).tolist() == [[20, 10, 60, 30]]
    assert scores.tolist() == [[0.5]]


def test_each_instance_is_selected_once_for_its_best_phrase():
    boxes = [
        (0.0, 0.2, 0.2, 0.8),
        (0.02, 0.2, 0.2, 0.8),  # duplicate of the first
        (0.4, 0.2, 0.6, 0.8),
        (0.4, 0.2, 0.6, 0.8),  # same place, another phrase
        (0.9, 0.5, 1.3, 1.2),  # partly outside the image
        (0.2, 1.1, 0.4, 1.3),  # entirely outside
        (0.7, 0.2, 0.8, 0.8),  # score too low
    ]
    scores = [(0.6, 0.5), (0.8, 0.1), (0.7, 0.2), (0.3, 0.4), (0.5, 0.4), (0.9, 0.1), (0.3, 0.2)]
    found = select_detections(np.array(boxes, np.float32), np.array(scores, np.float32), ["woman", "man"], 0.3, 0.5)
    assert [(d.phrase, pytest.approx(d.score)) for d in found] == [
        ("woman", 0.8),
        ("woman", 0.7),
        ("woman", 0.5),
        ("man", 0.4),
    ]
    assert [d.box for d in found] == [pytest.approx(b) for b in (boxes[1], boxes[2], (0.9, 0.5, 1.0, 1.0), boxes[3])]


corner = st.integers(0, 9)
cells = st.tuples(corner, corner, st.integers(1, 6), st.integers(1, 6)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


def paint_box(box: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros((16, 16), dtype=bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


@given(st.lists(cells, min_size=1, max_size=12), st.sampled_from([0.0, 0.3, 0.5, 1.0]), st.randoms())
def test_box_is_suppressed_exactly_if_it_overlaps_a_better_kept_one(places, most, random):
    scores = [i / 100 for i in range(len(places))]
    random.shuffle(scores)
    kept = suppress_overlaps(np.array(places, np.float32), np.array(scores, np.float32), most)
    assert [scores[i] for i in kept] == sorted((scores[i] for i in kept), reverse=True)
    assert scores[kept[0]] == max(scores)
    shapes = [paint_box(place) for place in places]
    for i, shape in enumerate(shapes):
        better = [shapes[j] for j in kept if scores[j] > scores[i]]
        overlaps = [(shape & other).sum() / (shape | other).sum() for other in better]
        assert (i in kept) == all(overlap <= most + 1e-6 for overlap in overlaps)
