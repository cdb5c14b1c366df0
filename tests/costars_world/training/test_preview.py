"""The map of the built-in model's previews fits renders that it was not fitted on."""

import numpy as np

from costars.model.preview import COLOURS
from costars.studio import open_studio
from costars_world.training.preview import FIRST_SEED, encode_cells, explained_variance, fit_colours


def test_map_of_the_built_in_model_explains_other_renders_as_well_as_their_own_fit():
    cells = encode_cells(open_studio("cpu").model("builtin").vae, range(FIRST_SEED + 100, FIRST_SEED + 106))
    shipped = explained_variance(np.array(COLOURS["builtin"]), *cells)
    best = explained_variance(fit_colours(*cells), *cells)
    assert 0.85 < shipped <= best < shipped + 0.05
