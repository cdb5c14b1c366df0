"""Scenes from files, from pictures, and with settings changed on the command line."""

from __future__ import annotations

from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

from costars.errors import ReadError, SceneError, nearest
from costars.files.plain_data import PARSERS, check_values, parse_json, parse_yaml, read_data
from costars.files.regular_file import expand_user, is_there
from costars.scene.defaults import reopen_defaults
from costars.scene.names import is_hub_id
from costars.scene.scene import BUILTIN, SIDES, Scene, parse_scene

# The fields of a scene that may name a file or folder; * stands for every key or index.
PATH_FIELDS = (
    ("model",),
    ("checkpoint", "vae"),
    ("checkpoint", "config"),
    ("cast", "*", "concept"),
    ("cast", "*", "where"),
    ("style", "concept"),
    ("controls", "*", "model"),
    ("controls", "*", "image"),
    ("segmenter", "detector"),
    ("segmenter", "sam"),
    ("segmenter", "model"),
)


def anchor_paths(scene: Scene, folder: Path, unchanged: Container[tuple[str, str]] = ()) -> Scene:
    """The scene with its relative paths made absolute, as seen from a folder.

    Names of the library and of the hub stay as they are, and so do the (field, name) in unchanged. Raises SceneError
    for a path that cannot be stored.
    """

    def anchored(field: str, name: str) -> str:
        if (field, name) in unchanged:
            return name
        try:
            path = (folder / expand_user(name)).absolute()
            is_path = _is_path(field, name, path)
        except ReadError as error:
            raise SceneError(f"{field}: {error}") from None
        return str(path) if is_path else name

    data = map_paths(scene, anchored)
    try:
        check_values(data)
    except ValueError as error:
        raise SceneError(f"{error}; rename the file or folder: scenes are stored as UTF-8 text") from None
    return Scene.model_validate(data)


def _is_path(field: str, name: str, path: Path) -> bool:
    match field:
        case "image":
            return True
        case "where":
            return name not in SIDES
        case "concept":
            return name.endswith(".safetensors")
        case _:  # a model: what has not the form of a hub id can only be a path, whether it exists or not
            return name != BUILTIN and (is_there(path) or name.endswith(".safetensors") or not is_hub_id(name))


def map_paths(scene: Scene, change: Callable[[str, str], str]) -> dict[str, Any]:
    """The scene as plain data, with change(field, value) in place of every value that may be a path."""
    data = scene.model_dump(mode="json", exclude_none=True)
    for place in PATH_FIELDS:
        _change(data, place, change)
    return data


def _change(here: Any, place: tuple[str, ...], change: Callable[[str, str], str]) -> None:
    key, *rest = place
    if key == "*":
        for inner in here.values() if isinstance(here, dict) else here:
            _change(inner, tuple(rest), change)
    elif isinstance(here, dict) and here.get(key) is not None:
        if rest:
            _change(here[key], tuple(rest), change)
        elif isinstance(here[key], str):
            here[key] = change(key, here[key])


def load_scene(file: str | Path) -> Scene:
    """A scene from a .yaml, .toml or .json file, or from a picture that costars wrote; its paths are made absolute.

    Relative paths are those beside the file. Raises SceneError for a file that cannot be read or contains no scene.
    """
    path = Path(file)
    if not is_there(path):
        raise SceneError(f"{path}: no such file or folder ({path.absolute()}); check the path")
    if path.is_dir():
        raise SceneError(f"{path}: is a folder; a scene is a file. Only costars render takes the folder of a plan")
    if path.suffix == ".png":
        return anchor_paths(_scene_in_picture(path), path.parent)
    if path.suffix not in PARSERS:
        raise SceneError(f"{path}: a scene is a .yaml, .toml or .json file, or a .png that costars wrote")
    try:
        data = read_data(path)
    except ReadError as error:
        raise SceneError(str(error)) from None
    return anchor_paths(parse_scene(data, str(path)), path.parent)


def read_picture_facts(path: Path) -> dict[str, Any]:
    """What a picture that costars wrote says about itself, its scene among it. Raises SceneError for other files."""
    from costars.files.pictures import load_picture

    try:
        text = load_picture(path, ("PNG",)).info.get("costars")
    except ReadError as error:
        raise SceneError(f"{path}: cannot be read as a picture ({error.reason}); {error.remedy}") from None
    if text is None:
        raise SceneError(f"{path}: contains no scene; give a picture that costars wrote, or a scene file")
    try:
        facts = parse_json(text, path)
    except ReadError:
        facts = None
    if not isinstance(facts, dict) or "scene" not in facts:
        raise SceneError(f"{path}: its scene is damaged; give the scene file instead")
    return facts


def _scene_in_picture(path: Path) -> Scene:
    facts = read_picture_facts(path)
    if facts.get("edited", False):
        raise SceneError(
            f"{path}: was rendered from a plan whose masks were edited, and a picture does not contain them; "
            "render the plan's folder for the same picture, or the scene file for another one"
        )
    return parse_scene(facts["scene"], str(path))


def _value(text: str, before: Any) -> Any:
    """A value as YAML has it; in the place of text as it stands where it is a number, empty, or begins with a slot."""
    try:
        value = parse_yaml(text, "--set")
    except ReadError:
        return text
    plain = isinstance(value, bool | int | float) or (isinstance(value, dict) and text.startswith("{"))
    return text if isinstance(before, str) and (plain or not text) else value


def with_settings(scene: Scene, settings: list[str], origin: str = "scene with --set") -> Scene:
    """The scene with key=value changes; keys may be dotted (cast.ana.weight), values are YAML.

    Relative paths among the values are in the working folder; what the scene says already stays as it is. Raises
    SceneError for a setting that does not exist or is not allowed.
    """
    unchanged = set[tuple[str, str]]()

    def keep(field: str, name: str) -> str:
        unchanged.add((field, name))
        return name

    map_paths(scene, keep)
    reopens = any(setting.partition("=")[0].partition(".")[0] in ("model", "segmenter") for setting in settings)
    data = (reopen_defaults(scene) if reopens else scene).model_dump(mode="json")
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise SceneError(f"--set {setting}: want key=value, for example seed=3 or cast.ana.weight=0.8")
        *parents, last = key.split(".")
        here = data
        for parent in parents:
            if parent not in here:
                raise SceneError(f"--set {setting}: the scene has no {parent!r}; {nearest(parent, here)}")
            if not isinstance(here[parent], dict):
                raise SceneError(f"--set {setting}: {parent!r} has no parts; set it as a whole, {parent}=...")
            here = here[parent]
        here[last] = _value(value, here.get(last))
    return anchor_paths(parse_scene(data, origin), Path(), unchanged)
