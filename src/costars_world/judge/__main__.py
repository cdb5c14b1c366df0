"""python -m costars_world.judge PICTURE... --references DIR [--mask FILE]: judges one figure of each picture."""

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
from costars_world.judge.references import figure_in, identity_of, reference_figures

OTHERS = 100


def main(arguments: list[str] | None = None) -> None:
    """Print a JSON list with one entry for each picture."""
    parser = argparse.ArgumentParser(prog="python -m costars_world.judge", description=__doc__)
    parser.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE")
    parser.add_argument(
        "--references", type=Path, required=True, help="NN.png of one identity, with NN.mask.png if any"
    )
    parser.add_argument("--mask", type=Path, help="where the figure is; default: the largest one that is found")
    options = parser.parse_args(arguments)
    try:
        entries = judged(options.pictures, options.references, options.mask)
    except CostarsError as error:
        print(f"judge: {error}", file=sys.stderr)
        sys.exit(2)
    print(json.dumps(entries, indent=2))


def judged(pictures: list[Path], references: Path, mask: Path | None) -> list[dict[str, object]]:
    """What the judge says of each picture: class, attributes, likeness to the references and rank among others.

    Raises SceneError for a file that is missing or shows no figure.
    """
    shipped, cpu = machine_settings().builtin, torch.device("cpu")
    judge = load_judge(JUDGE_WEIGHTS, cpu)
    segmenter = load_segmenter(shipped / "segmenter" / "model.safetensors", cpu)
    known = judge(reference_figures(references, segmenter))
    reference = mean_embedding(torch.stack([verdict.embedding for verdict in known]))
    who = identity_of(references, known)
    gallery = Gallery(judge, OTHERS)
    verdicts = judge([figure_in(path, mask, segmenter) for path in pictures])
    return [
        {
            "picture": str(path),
            "class_name": verdict.identity.class_name,
            "attributes": dict(verdict.identity.attributes),
            "similarity": round(float(verdict.embedding @ reference), 4),
            "rank": gallery.rank(verdict.embedding, reference, who),
            "others": len(gallery.strangers(who)),
        }
        for path, verdict in zip(pictures, verdicts, strict=True)
    ]


if __name__ == "__main__":
    main()
