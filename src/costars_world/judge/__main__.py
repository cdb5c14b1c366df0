"""Judge one figure of each image: its class, attributes, and similarity to reference images of an identity."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from costars.builtin.segmenter import load_segmenter
from costars.errors import CostarsError
from costars.settings import machine_settings
from costars_world.judge.gallery import Gallery, mean_embedding
from costars_world.judge.judge import JUDGE_WEIGHTS, load_judge
from costars_world.judge.references import find_reference_identity, load_figure, load_reference_figures

NUM_DISTRACTORS = 100


def main(arguments: list[str] | None = None) -> None:
    """Print a JSON list with one entry per image."""
    parser = argparse.ArgumentParser(prog="python -m costars_world.judge", description=__doc__)
    parser.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE", help="image to judge")
    parser.add_argument(
        "--references",
        type=Path,
        required=True,
        help="folder with images NN.png of one identity and optional masks NN.mask.png",
    )
    parser.add_argument("--mask", type=Path, help="mask of the figure in every image; default: the largest figure")
    options = parser.parse_args(arguments)
    try:
        entries = judge_images(options.pictures, options.references, options.mask)
    except CostarsError as error:
        print(f"judge: {error}", file=sys.stderr)
        sys.exit(2)
    print(json.dumps(entries, indent=2))


def judge_images(paths: list[Path], references: Path, mask: Path | None) -> list[dict[str, object]]:
    """Return class, attributes, similarity to the references, and rank among distractors for each image.

    Raises SceneError for a file that is missing, unreadable or shows no figure.
    """
    builtin, cpu = machine_settings().builtin, torch.device("cpu")
    judge = load_judge(JUDGE_WEIGHTS, cpu)
    segmenter = load_segmenter(builtin / "segmenter" / "model.safetensors", cpu)
    reference_verdicts = judge(load_reference_figures(references, segmenter))
    reference = mean_embedding(torch.stack([verdict.embedding for verdict in reference_verdicts]))
    identity = find_reference_identity(references, reference_verdicts)
    gallery = Gallery(judge, NUM_DISTRACTORS)
    verdicts = judge([load_figure(path, mask, segmenter) for path in paths])
    return [
        {
            "picture": str(path),
            "class_name": verdict.identity.class_name,
            "attributes": dict(verdict.identity.attributes),
            "similarity": round(float(verdict.embedding @ reference), 4),
            "rank": gallery.rank(verdict.embedding, reference, identity),
            "others": len(gallery.distractors(identity)),
        }
        for path, verdict in zip(paths, verdicts, strict=True)
    ]


if __name__ == "__main__":
    main()
