"""Collecting the evidence of the E-step."""

from dataclasses import replace

import pytest
import torch

from costars.errors import TrainError
from costars.train.em.evidence import AttentionResolutions


def test_resolutions_of_cells():
    resolutions = AttentionResolutions(latent_px=8, px=(16, 32))
    assert [resolutions.includes(n, (1, 4, 16, 16)) for n in (256, 64, 16, 4)] == [False, True, True, False]
    assert resolutions.finest((1, 4, 16, 16)) == 64


def test_all_concepts_of_an_image_get_the_same_noise(open_objective, evidences):
    objective = open_objective("learned")
    objective.prepare_step(0)
    chain_rules, alone = evidences
    assert not alone.errors and list(chain_rules.errors) == list(chain_rules.maps) == ["ana", "rex"]
    assert len({error.numpy().tobytes() for error in chain_rules.errors.values()}) == 1
    assert {error.shape for error in chain_rules.errors.values()} == {objective.images[0].latent.shape[-2:]}


def test_self_attention_is_that_of_the_finest_cells(open_objective, evidences):
    objective = open_objective("learned")
    objective.prepare_step(0)
    h, w = objective.images[0].latent.shape[-2:]
    finest = min(objective.em.attention_cell_px) // objective.task.model.info.cell_px
    for evidence in evidences:
        assert evidence.self_attention is not None
        assert len(evidence.self_attention) == (h // finest) * (w // finest)
        rows = evidence.self_attention.sum(dim=1)
        assert torch.allclose(rows, rows[:1].expand_as(rows), rtol=1e-3)  # each layer and timestep adds rows of sum 1


def test_without_likelihood_only_maps_are_collected(open_objective, evidences):
    objective = open_objective("learned")
    objective.em = replace(objective.em, estep=replace(objective.em.estep, use_likelihood=False))
    objective.prepare_step(0)
    assert [(evidence.self_attention, dict(evidence.errors)) for evidence in evidences] == [(None, {})] * 2


@pytest.mark.parametrize("masks", ["learned", "given"])
def test_unavailable_cells_are_rejected(open_objective, masks):
    message = r"em.attention_cell_px: \[8, 32\]; the model has no attention layer with cells of 8 px, use some of"
    with pytest.raises(TrainError, match=message):
        open_objective(masks, em={"attention_cell_px": (8, 32)})
