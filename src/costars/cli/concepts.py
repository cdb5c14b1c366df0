"""costars concepts: what can be cast, what a file is, and other people's files into the library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from costars.errors import ConceptError

if TYPE_CHECKING:
    from costars.concepts.library import Library

concepts_app = typer.Typer(help="The characters and objects you can cast.", no_args_is_help=True)
console = Console(stderr=True)


@concepts_app.command("list")
def list_concepts() -> None:
    """Every concept a scene can name: the shipped ones, your library and your other folders."""
    from costars.concepts.library import BUILTIN, check_link
    from costars.concepts.load import read_card

    store = _store()
    for name, path in store.files():
        try:
            card = read_card(path if name.startswith(BUILTIN) else check_link(path))
        except ConceptError as error:
            typer.echo(f"{name:<20} damaged: {error}")
            continue
        kind = "".join(c if c.isprintable() else "?" for c in str(card.get("class_name") or "?"))
        typer.echo(f"{name:<20} {kind:<8} {path.stat().st_size // 1024} kB")
    for name, path, meant in store.hidden_files():
        typer.echo(f"{name:<20} hidden: {path} is not used, {meant} has the same name")


@concepts_app.command("show")
def show_concept(name: Annotated[str, typer.Argument(help="builtin/NAME, a library name or a file")]) -> None:
    """Print what a concept file says of itself, as JSON."""
    store = _store()
    concept = store.load(name)
    from costars.concepts.load import read_card

    ranks = sorted({len(entry.down) for entry in concept.adapter.values()})
    facts = {
        **read_card(store.find(name)),
        "name": concept.name,
        "format": concept.format,
        "family": concept.family,
        "sha256": concept.sha256,
        "layers": len(concept.adapter),
        "ranks": ranks,
    }
    typer.echo(json.dumps(facts, indent=2))


@concepts_app.command("inspect")
def inspect_file(file: Annotated[Path, typer.Argument(help="a .safetensors file, or the .pth of an ED-LoRA")]) -> None:
    """Say what a concept file is, whoever wrote it, as JSON: format, base model, layers, words, licence.

    Of a file that cannot be applied it says what is known, and why."""
    from costars.concepts.inspect import describe

    typer.echo(json.dumps(describe(file), indent=2))


@concepts_app.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(help="a .safetensors file, or the .pth of an ED-LoRA")],
    name: Annotated[str | None, typer.Option(help="what scenes call it, default: the file's name")] = None,
    class_name: Annotated[str | None, typer.Option("--class", help="what it is, e.g. woman")] = None,
    trigger: Annotated[str | None, typer.Option(help="the word it was taught by")] = None,
    licence: Annotated[str | None, typer.Option(help="what its maker allows")] = None,
    words: Annotated[Path | None, typer.Option(help="a textual inversion that belongs to it")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="put it in the place of one of its name")] = False,
) -> None:
    """Check a file of any known kind and put it into your library."""
    from costars.concepts.import_file import ImportOptions, import_concept

    options = ImportOptions(
        name=name, class_name=class_name, trigger=trigger, licence=licence, embedding=words, overwrite=replace
    )
    made = import_concept(file, _store().user_folder, options)
    concept = made.concept
    layers = f"{len(concept.adapter)} layers" if concept.adapter else f"{len(concept.tokens)} words"
    facts = (
        concept.family or "base model not told",
        layers,
        concept.class_name or "no class",
        concept.trigger or "no trigger",
    )
    said = ", ".join(facts)
    console.print(said, highlight=False, markup=False, soft_wrap=True)
    if not concept.trigger and made.hints:
        hints = ", ".join(repr(hint) for hint in made.hints)
        console.print(f"its trigger may be among {hints}", highlight=False, markup=False, soft_wrap=True)
    if not (concept.class_name and concept.trigger):
        console.print("import it again with --class, --trigger and --replace to say more", soft_wrap=True)
    typer.echo(concept.name)


@concepts_app.command("export")
def export_file(
    name: Annotated[str, typer.Argument(help="builtin/NAME, a library name or a file")],
    form: Annotated[str, typer.Option("--format", help="kohya (LoRAs alone) or diffusers")],
    out: Annotated[Path, typer.Option(help="NAME.safetensors for a LoRA, a folder for all else")],
    replace: Annotated[bool, typer.Option("--replace", help="put it in the place of what is there")] = False,
) -> None:
    """Write a concept in a format that other programs read, and print the paths of its files."""
    from costars.concepts.export import export_concept
    from costars.concepts.load import read_card

    store = _store()
    for path in export_concept(store.load(name), read_card(store.find(name)), form, out, replace):
        typer.echo(path)


@concepts_app.command("merge")
def merge_files(
    names: Annotated[list[str], typer.Argument(help="concepts that custom-diffusion taught apart on one model")],
    model: Annotated[str, typer.Option(help="that model: builtin, a folder, a file or a hub id")],
    captions: Annotated[
        Path, typer.Option(help="a text file, each line a caption whose pictures are to stay as they are")
    ],
    out: Annotated[Path, typer.Option(help="folder for one NAME.safetensors each")],
    replace: Annotated[bool, typer.Option("--replace", help="put them in the place of what is there")] = False,
) -> None:
    """Give concepts one set of keys and values, so that a prompt may name them all, and print the paths."""
    from costars.concepts.load import read_card
    from costars.concepts.saving import write_concept
    from costars.resolve import match_concepts
    from costars.studio import open_studio
    from costars.train.merge_custom_diffusion import merge_concepts

    others = [line.strip() for line in captions.read_text(errors="replace").splitlines() if line.strip()]
    targets = [out / f"{Path(name).stem}.safetensors" for name in names]
    for target in targets:
        if targets.count(target) > 1 or (target.exists() and not replace):
            raise ConceptError(
                f"{target}: is there already; name each concept once, give another --out, or --replace it"
            )
    if not others:
        raise ConceptError(
            f"--captions {captions}: holds none; write a caption on each line, such as 'a cat on a chair'"
        )
    studio = open_studio()
    concepts, base = [studio.store.load(name) for name in names], studio.model(model)
    match_concepts({concept.name: concept for concept in concepts}, base)
    for name, made, target in zip(names, merge_concepts(base, concepts, others), targets, strict=True):
        write_concept(made, read_card(studio.store.find(name)), target)
        typer.echo(target)


@concepts_app.command("remove")
def remove_concept(name: Annotated[str, typer.Argument(help="a name in your library")]) -> None:
    """Delete a concept from your library."""
    typer.echo(_store().remove(name))


def _store() -> Library:
    from costars.concepts.library import Library
    from costars.settings import machine_settings

    settings = machine_settings()
    return Library(settings.builtin / "concepts", settings.library, settings.concept_folders)
