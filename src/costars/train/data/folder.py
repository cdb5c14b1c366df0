"""List the training images of a folder with their captions and masks, and everything in it that is not read.

Captions and masks are named as by kohya's sd-scripts, OneTrainer and Hugging Face datasets.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from costars.errors import TrainError, to_one_line
from costars.scene.names import normalize_name
from costars.train.data.metadata_files import KOHYA_METADATA, CaptionEntry, read_jsonl, read_kohya
from costars.train.data.text_files import first_line, read_text

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CAPTION_SUFFIXES = (".txt", ".caption")  # OneTrainer's; kohya's default
MASK_ENDINGS = (".mask", "-masklabel", "_mask")  # before an image suffix: costars', OneTrainer's, and a common one
CONDITION_ENDING = "-condlabel"  # OneTrainer's, before an image suffix: what a ControlNet or an editing model reads
MASK_FOLDERS = ("masks", "mask")  # with masks that have the names of their images
OTHER_IMAGES = (".gif", ".heic", ".heif", ".avif", ".jxl", ".tif", ".tiff", ".jp2", ".svg", ".psd", ".raw", ".dng")
# Files that systems and programs put into every folder; hidden files are not named either.
IGNORED = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "__macosx")
EXPECTED_FILES = f"expected {', '.join(IMAGE_SUFFIXES)}"
MAX_NAMES = 20  # named in one line
MAX_CAPTION = 10_000  # characters; the text encoders read 600 tokens
_REPEATS = re.compile(r"\d{1,4}_.+")  # kohya's folders: repeats_class


@dataclass(frozen=True)
class ListedImage:
    """An image file that was not read yet: its path in the folder, its caption, and the mask files of each concept.

    The mask of the whole image is that of the concept "".
    """

    name: str
    caption: str | None = None
    masks: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class FolderListing:
    """The images of a folder, and one line for each kind of file that is not read."""

    images: tuple[ListedImage, ...]
    unread: tuple[str, ...]


def list_images(folder: Path, concepts: Sequence[str] = ()) -> FolderListing:
    """The folder's images sorted by name, or those that its metadata file lists; raises TrainError.

    concepts are the names that a mask's file name may contain (IMAGE.NAME.mask.png).
    """
    if not folder.is_dir():
        raise TrainError(f"images {str(folder)!r}: folder not found; give a folder of training images")
    files = _Files(folder)
    metadata, entries = _read_metadata(folder, files)
    if metadata is None:
        entries = [CaptionEntry(name) for name in files.images()]
    listed, used = list[ListedImage](), {metadata} if metadata else set[str]()
    folders = {"": files}
    for entry in entries:
        image, own = _find_sidecars(folder, entry, folders, concepts)
        listed.append(image)
        used |= own
    _check_shared_sidecars(listed, files)
    unread = _describe_unread(folder, [name for name in files.names if name not in used], metadata, files)
    return FolderListing(tuple(listed), tuple(unread))


def describe_no_image(folder: Path, reason: str, unread: Sequence[str]) -> str:
    """The error message for a folder of which no image can be used, with what lies there instead."""
    why = "; ".join([reason, *unread])
    return f"images {str(folder)!r}: no usable image in the folder ({why}); add at least one"


class _Files:
    """The names of the visible files and folders of a folder, and of the files in its mask folders."""

    def __init__(self, folder: Path) -> None:
        try:
            self.names = sorted(name for name in os.listdir(folder) if _is_visible(name))
            masks = [name for name in self.names if name.lower() in MASK_FOLDERS and (folder / name).is_dir()]
            for inner in masks:
                own = [f"{inner}/{name}" for name in sorted(os.listdir(folder / inner)) if _is_visible(name)]
                self.names = [*(name for name in self.names if name != inner), *own]
        except OSError as error:
            raise TrainError(f"images {str(folder)!r}: cannot list the folder ({to_one_line(error)})") from error
        self.mask_folders = masks
        self._by_stem: dict[str, list[str]] = {}
        for name in self.names:
            self._by_stem.setdefault(_stem(name), []).append(name)

    def find(self, stem: str, suffixes: Iterable[str]) -> list[str]:
        """Files with this stem and one of these suffixes in any case."""
        return [name for name in self._by_stem.get(normalize_name(stem), ()) if _suffix(name) in suffixes]

    def is_mask(self, name: str) -> bool:
        """Whether an image file is a mask: IMAGE_mask.png only where IMAGE exists, for it may be a photo of a mask."""
        stem, (*certain, common) = _stem(name), MASK_ENDINGS
        in_mask_folder = any(name.startswith(f"{folder}/") for folder in self.mask_folders)
        if in_mask_folder or stem.lower().endswith(tuple(certain)):
            return True
        return stem.lower().endswith(common) and bool(self.find(stem[: -len(common)], IMAGE_SUFFIXES))

    def images(self) -> list[str]:
        """The image files that are no masks and no conditions."""
        images = [name for name in self.names if _suffix(name) in IMAGE_SUFFIXES and not self.is_mask(name)]
        return [name for name in images if not _is_condition(name)]

    def masks(self, image: str, concept: str) -> list[str]:
        """The mask files of a concept in an image."""
        stem = f"{_stem(image)}.{concept}" if concept else _stem(image)
        beside = [n for ending in MASK_ENDINGS for n in self._with_ending(stem, ending) if self.is_mask(n)]
        return beside + [n for folder in self.mask_folders for n in self.find(f"{folder}/{stem}", IMAGE_SUFFIXES)]

    def _with_ending(self, stem: str, ending: str) -> list[str]:
        variants = dict.fromkeys((ending, ending.upper(), ending.title()))
        return [name for variant in variants for name in self.find(stem + variant, IMAGE_SUFFIXES)]


def _is_visible(name: str) -> bool:
    return not name.startswith((".", "~$")) and name.lower() not in IGNORED


def _stem(name: str) -> str:
    return normalize_name(os.path.splitext(name)[0])


def _is_condition(name: str) -> bool:
    return _stem(name).lower().endswith(CONDITION_ENDING)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _read_metadata(folder: Path, files: _Files) -> tuple[str | None, list[CaptionEntry]]:
    """The name of the metadata file and the images that it lists; None if there is none."""
    names = [name for name in files.names if _suffix(name) == ".jsonl"]
    if len(names) > 1:
        raise TrainError(f"images {str(folder)!r}: found {len(names)} .jsonl files, {', '.join(names)}; keep one")
    if names:
        return names[0], list(read_jsonl(folder, names[0], files.is_mask))
    found = next((name for name in KOHYA_METADATA if name in files.names), None)
    return found, [] if found is None else list(read_kohya(folder, found, files.images()))


def _find_sidecars(
    folder: Path, entry: CaptionEntry, folders: dict[str, _Files], concepts: Sequence[str]
) -> tuple[ListedImage, set[str]]:
    """An image with its caption and masks, and the names of all its files; folders holds those that were listed."""
    inner, name = os.path.split(entry.name)
    at = folder / inner
    if inner not in folders:
        folders[inner] = _Files(at)
    beside = folders[inner]
    captions = beside.find(_stem(name), CAPTION_SUFFIXES)
    if len(captions) > 1:
        raise TrainError(f"{entry.name}: has the captions {', '.join(captions)}; keep one")
    masks = dict[str, str]()
    for concept in ("", *concepts):
        found = beside.masks(name, concept)
        if len(found) > 1:
            raise TrainError(f"{entry.name}: has the masks {', '.join(found)}; keep one")
        masks |= {concept: found[0]} if found else {}
    used = {entry.name, *captions, *masks.values()} | ({inner.split("/")[0]} if inner else set())
    caption = entry.caption
    if caption is None and captions:
        caption = first_line(read_text(at / captions[0]))
    if len(caption or "") > MAX_CAPTION:
        raise TrainError(f"{entry.name}: a caption of {len(caption or '')} characters; write at most {MAX_CAPTION}")
    paths = {concept: at / mask for concept, mask in masks.items()}
    if entry.mask is not None:
        paths[""] = folder / entry.mask
        used.add(entry.mask)
    return ListedImage(entry.name, caption, paths), used


def _check_shared_sidecars(images: Sequence[ListedImage], files: _Files) -> None:
    """Raises TrainError for two images whose caption or mask is the same file."""
    by_stem: dict[str, ListedImage] = {}
    for image in images:
        first = by_stem.setdefault(_stem(image.name), image)
        shared = [*files.find(_stem(image.name), CAPTION_SUFFIXES), *(path.name for path in image.masks.values())]
        if first.name != image.name and shared:
            raise TrainError(f"{first.name} and {image.name} share {shared[0]}; rename one of them with its files")


def _describe_unread(folder: Path, names: Sequence[str], metadata: str | None, files: _Files) -> Iterator[str]:
    """One line for each reason why files are not read."""
    reasons: dict[str, list[str]] = {}
    for name in names:
        reasons.setdefault(_find_reason(folder, name, metadata, files), []).append(name)
    for reason, each in reasons.items():
        more = f" and {len(each) - MAX_NAMES} more" if len(each) > MAX_NAMES else ""
        yield f"not read: {', '.join(map(repr, each[:MAX_NAMES]))}{more}: {reason}"


def _find_reason(folder: Path, name: str, metadata: str | None, files: _Files) -> str:
    suffix = _suffix(name)
    if (folder / name).is_dir():
        if _REPEATS.fullmatch(name):
            return "a folder named as kohya's repeats; give it with --images (its number has no effect)"
        return "a folder within the folder"
    if suffix in OTHER_IMAGES:
        return "an image format that is not supported; convert it to PNG or JPEG"
    if suffix in CAPTION_SUFFIXES or (suffix in IMAGE_SUFFIXES and files.is_mask(name)):
        return "no image has this name"
    if suffix in IMAGE_SUFFIXES and _is_condition(name):
        return "OneTrainer's condition of an image, which no recipe reads"
    if suffix in IMAGE_SUFFIXES:
        return f"not listed in {metadata}"
    return "neither an image, a caption nor a mask"
