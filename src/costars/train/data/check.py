"""What can be checked of training data before a model is loaded."""

from __future__ import annotations

from pathlib import Path

from costars.errors import TrainError
from costars.train.config import TrainConfig
from costars.train.data.folder import EXPECTED_FILES, list_images


def check_image_folders(config: TrainConfig) -> None:
    """Raise TrainError for folders of images that are missing or empty, all of them at once; paths are absolute."""
    folders = dict.fromkeys(
        (concept.name, folder)
        for concept in config.concepts
        for folder in (concept.images or config.images, concept.class_images)
        if folder is not None
    )
    problems = dict[str, None]()
    for name, folder in folders:
        try:
            listing = list_images(Path(folder))
            if not listing.images:
                why = "; ".join([EXPECTED_FILES, *listing.unread])
                problems[f"{name}: images {folder!r}: no usable image in the folder ({why}); add at least one"] = None
        except TrainError as error:
            problems[f"{name}: {error}"] = None
    if problems:
        raise TrainError("; ".join(problems))
