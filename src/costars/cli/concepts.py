"""costars concepts: list, inspect, import, export, merge and remove concepts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from costars.cli.console import parse_path, print_line, to_line
from costars.errors import ConceptError
from costars.files.regular_file import read_text

if TYPE_CHECKING:
    from costars.concepts.import_file import ImportResult
    from costars.concepts.library import Library

concepts_app = typer.Typer(help="List, inspect, import, export, merge and remove concepts.", no_args_is_help=True)

NameOrFile = Annotated[str, typer.Argument(help="builtin/NAME, a name in your library, or a file")]
ConceptFile = Annotated[Path, typer.Argument(parser=parse_path, help=".safetensors file, or .pth file of an ED-LoRA")]


@concepts_app.command("list")
def list_concepts() -> None:
    """List every concept that a scene can name: bundled, in your library, and in your other folders."""
    from costars.concepts.library import BUILTIN, check_link
    from costars.concepts.load import read_card

    library = _open_library()
    for name, path in library.files():
        try:
            card = read_card(path if name.startswith(BUILTIN) else check_link(path))
        except ConceptError as error:
            typer.echo(f"{_printable(name):<20} damaged: {to_line(str(error))}")
            continue
        class_name = _printable(str(card.get("class_name") or "?"))
        typer.echo(f"{_printable(name):<20} {class_name:<8} {path.stat().st_size // 1024} kB")
    for name, path, used in library.hidden_files():
        typer.echo(f"{_printable(name):<20} hidden: {to_line(f'{path} is not used, {used} has the same name')}")


def _printable(text: str) -> str:
    """The text without control characters: it comes from a file and goes to a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text[:200])


@concepts_app.command("show")
def show_concept(name: NameOrFile) -> None:
    """Print the card, format and layers of a concept as JSON."""
    from costars.concepts.load import read_card
    from costars.types import LowRank

    library = _open_library()
    concept = library.load(name)
    facts = {
        **read_card(library.find(name)),
        "name": concept.name,
        "format": concept.format,
        "family": concept.family,
        "sha256": concept.sha256,
        "layers": len(concept.adapter),
        "ranks": sorted({len(layer.down) for layer in concept.adapter.values() if isinstance(layer, LowRank)}),
    }
    typer.echo(json.dumps(facts, indent=2))


@concepts_app.command("inspect")
def inspect_file(file: ConceptFile) -> None:
    """Print what a file contains as JSON: format, base model, layers, learned words, licence.

    For a file that cannot be used, print what is known and the reason."""
    from costars.concepts.inspect import describe

    typer.echo(json.dumps(describe(file), indent=2))


@concepts_app.command("import")
def import_file(
    file: ConceptFile,
    name: Annotated[str | None, typer.Option(help="name in scenes; default: the file's name")] = None,
    class_name: Annotated[str | None, typer.Option("--class", help="class word, e.g. woman")] = None,
    trigger: Annotated[str | None, typer.Option(help="word for the concept in prompts")] = None,
    licence: Annotated[str | None, typer.Option(help="licence of the file")] = None,
    words: Annotated[
        Path | None, typer.Option(parser=parse_path, help="textual inversion that belongs to the file")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="replace a concept of the same name")] = False,
) -> None:
    """Check a file and add it to your library; print its name."""
    from costars.concepts.import_file import ImportOptions, import_concept

    options = ImportOptions(
        name=name, class_name=class_name, trigger=trigger, licence=licence, embedding=words, overwrite=replace
    )
    result = import_concept(file, _open_library().user_folder, options)
    _print_import(result)
    typer.echo(result.concept.name)


def _print_import(result: ImportResult) -> None:
    concept = result.concept
    facts = (
        concept.family or "unknown base model",
        f"{len(concept.adapter)} layers" if concept.adapter else f"{len(concept.tokens)} words",
        concept.class_name or "no class",
        concept.trigger or "no trigger",
    )
    print_line(", ".join(facts))
    if not concept.trigger and result.hints:
        print_line(f"the trigger may be one of {', '.join(repr(hint) for hint in result.hints)}")
    if not (concept.class_name and concept.trigger):
        print_line("to set what is missing, import it again with --class, --trigger and --replace")


@concepts_app.command("export")
def export_file(
    name: NameOrFile,
    format_name: Annotated[str, typer.Option("--format", help="kohya (LoRA only) or diffusers")],
    out: Annotated[Path, typer.Option(parser=parse_path, help="NAME.safetensors for a LoRA, otherwise a folder")],
    replace: Annotated[bool, typer.Option("--replace", help="replace existing files")] = False,
) -> None:
    """Write a concept in a format of other programs; print the paths of its files."""
    from costars.concepts.export import export_concept
    from costars.concepts.load import read_card

    library = _open_library()
    for path in export_concept(library.load(name), read_card(library.find(name)), format_name, out, replace):
        typer.echo(path)


@concepts_app.command("merge")
def merge_files(
    names: Annotated[list[str], typer.Argument(help="concepts that custom-diffusion trained on one model")],
    model: Annotated[str, typer.Option(help="that model: builtin, a folder, a file or a hub id")],
    captions: Annotated[
        Path, typer.Option(parser=parse_path, help="text file with one caption per line; their images hardly change")
    ],
    out: Annotated[Path, typer.Option(parser=parse_path, help="folder for the NAME.safetensors files")],
    replace: Annotated[bool, typer.Option("--replace", help="replace existing files")] = False,
) -> None:
    """Merge concepts into one set of keys and values, so that one prompt can use them all; print the paths."""
    from costars.concepts.load import read_card
    from costars.concepts.saving import write_concept
    from costars.resolve import match_concepts
    from costars.studio import open_studio
    from costars.train.merge_custom_diffusion import merge_concepts

    others = [line.strip() for line in read_text(captions).splitlines() if line.strip()]
    if not others:
        raise ConceptError(f"--captions {captions}: no caption; write one per line, such as 'a cat on a chair'")
    targets = _merge_targets(names, out, replace)
    studio = open_studio()
    concepts, base = [studio.store.load(name) for name in names], studio.model(model)
    match_concepts({concept.name: concept for concept in concepts}, base)
    for name, merged, target in zip(names, merge_concepts(base, concepts, others), targets, strict=True):
        write_concept(merged, read_card(studio.store.find(name)), target, replace=replace)
        typer.echo(target)


def _merge_targets(names: list[str], out: Path, replace: bool) -> list[Path]:
    targets = [out / f"{Path(name).stem}.safetensors" for name in names]
    for target in targets:
        if targets.count(target) > 1:
            raise ConceptError(f"{target}: two concepts would be written to it; give each concept once")
        if target.exists() and not replace:
            raise ConceptError(f"{target}: already exists; choose another --out, or use --replace")
    return targets


@concepts_app.command("remove")
def remove_concept(name: Annotated[str, typer.Argument(help="a name in your library")]) -> None:
    """Delete a concept from your library; print the path of its file."""
    typer.echo(_open_library().remove(name))


def _open_library() -> Library:
    from costars.concepts.library import Library
    from costars.settings import machine_settings

    settings = machine_settings()
    return Library(settings.builtin / "concepts", settings.library, settings.concept_folders)
