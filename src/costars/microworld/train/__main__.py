"""python -m costars.microworld.train: trains the built-in world from nothing but the renderer."""

from __future__ import annotations

import argparse
import math
import os
import shutil
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file

from costars.microworld.segmenter import SegmenterNet, WorldSegmenter
from costars.microworld.train import base, concepts, corpus, latents, loop, samples, segmenter, vae

WEIGHTS = Path(__file__).parents[1] / "weights"
PICTURES = 40_000  # rendered once, 5 ms each and core
FOR_SEGMENTER = 14_000
PARTS = ("vae", "base", "segmenter", "concepts")
Said = tuple[int, int, str]  # step, of, what to say beside the bar


class Workshop:
    """Where training keeps its pictures and checkpoints, and where it puts the weights."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.work: Path = options.work
        self.weights: Path = options.weights
        self.device = torch.device(options.device)
        self.minutes: float = options.minutes
        self.resume: bool = options.resume
        self.sheet_every_s = 60 * options.sheet_every
        self.work.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)

    def state(self, part: str) -> Path:
        """The checkpoint of one part; an old one is removed unless the run resumes it."""
        path = self.work / f"{part}.safetensors"
        if not self.resume:
            path.unlink(missing_ok=True)
        return path

    def rendered(self, count: int) -> Iterator[Said]:
        """Render what is missing of so many pictures."""
        for done in corpus.render(self.work / "corpus", count, os.cpu_count() or 1):
            yield done, count, "pictures"

    def finished(self, part: str, run: loop.Run, recipe: loop.Recipe) -> None:
        """Raises UnfinishedError unless the recipe is done: later parts build on finished ones only."""
        if run.step < recipe.steps:
            raise UnfinishedError(f"{part}: {run.step} of {recipe.steps} steps; go on with --resume")

    def train_vae(self) -> Iterator[Said]:
        yield from self.rendered(PICTURES)
        data = corpus.load(self.work / "corpus", PICTURES)
        model = vae.build()
        checkpoint = self.state("vae")
        steps = vae.train(model, data, checkpoint, device=self.device, minutes=self.minutes, resume=self.resume)
        first = yield from _told(steps)
        self.finished("vae", first, vae.RECIPE)
        loop.put_average(first, model)
        whole = vae.train(
            model,
            data,
            self.state("vae-whole"),
            recipe=vae.WHOLE_RECIPE,
            device=self.device,
            minutes=self.minutes,
            resume=self.resume,
            decoder_only=True,
        )
        run = yield from _told(whole)
        self.finished("vae", run, vae.WHOLE_RECIPE)
        loop.put_average(run, model)
        model.eval()
        mean, _ = latents.moments(model, torch.from_numpy(corpus.load_images(self.work / "corpus", 0)))
        model.register_to_config(scaling_factor=1 / float(mean.std()))
        model.save_pretrained(self.work / "vae")
        model.to(torch.float16).save_pretrained(self.weights / "model" / "vae")
        stages = {
            "recipe of the crops": asdict(vae.RECIPE),
            "steps on crops": first.step,
            "seconds on crops": first.seconds,
        }
        loop.write_card(self.weights / "model" / "vae" / "card.json", vae.WHOLE_RECIPE, run, self.device, **stages)

    def train_base(self) -> Iterator[Said]:
        yield from self.rendered(PICTURES)
        decoder = AutoencoderKL.from_pretrained(self.work / "vae").to(self.device).eval()
        for done in latents.encode(decoder, self.work / "corpus", self.work / "latents", PICTURES):
            yield done, PICTURES, "latents"
        captions = corpus.load_captions(self.work / "corpus", PICTURES)
        encoded = latents.load(self.work / "latents", PICTURES)
        model = base.build(self.work / "model")
        checkpoint = self.state("base")
        drawn = time.monotonic()
        for run, p in base.train(
            model, encoded, captions, checkpoint, device=self.device, minutes=self.minutes, resume=self.resume
        ):
            yield p.step, p.of, f"loss {p.loss:.4f}"
            if time.monotonic() - drawn > self.sheet_every_s:
                self._sheet(model, run, decoder, samples.PROMPTS[:16])
                drawn = time.monotonic()
        self._sheet(model, run, decoder, samples.PROMPTS)
        self.finished("base", run, base.RECIPE)
        loop.put_average(run, model.trained())
        base.save(model, decoder, self.work / "model")
        loop.write_card(self.work / "model" / "card.json", base.RECIPE, run, self.device)
        shutil.copytree(self.work / "model", self.weights / "model", dirs_exist_ok=True)

    def train_segmenter(self) -> Iterator[Said]:
        yield from self.rendered(FOR_SEGMENTER)
        data = corpus.load(self.work / "corpus", FOR_SEGMENTER)
        net, checkpoint = SegmenterNet(), self.state("segmenter")
        steps = segmenter.train(net, data, checkpoint, device=self.device, minutes=self.minutes, resume=self.resume)
        run = yield from _told(steps)
        self.finished("segmenter", run, segmenter.RECIPE)
        loop.put_average(run, net)
        held_out = segmenter.measure(WorldSegmenter(net.eval(), self.device), 500)
        folder = self.weights / "segmenter"
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {k: v.to(torch.float16).cpu().contiguous() for k, v in net.state_dict().items()}
        save_file(tensors, folder / "model.safetensors")
        loop.write_card(folder / "card.json", segmenter.RECIPE, run, self.device, held_out=held_out)

    def train_concepts(self) -> Iterator[Said]:
        from costars.model.load import load_sdxl

        model = load_sdxl(self.weights / "model", "builtin", self.device, torch.float32, 0, "world")
        folder = self.weights / "concepts"
        names = [n for n in concepts.PACK if not (self.resume and concepts.is_of(folder, n, model))]
        of, began = max(1, len(names) * concepts.RECIPE.steps), time.monotonic()
        for name, step, loss in concepts.train(model, folder, names):
            yield step, of, f"{name} loss {loss:.4f}"
            if step % concepts.RECIPE.steps == 0 and step < of and time.monotonic() - began > 60 * self.minutes:
                raise UnfinishedError(f"concepts: {step} of {of} steps; go on with --resume")

    def _sheet(self, model: base.BaseModel, run: loop.Run, decoder: AutoencoderKL, prompts: tuple[str, ...]) -> None:
        shown = samples.as_model(samples.averaged(model, run), decoder, self.device)
        samples.tiled(samples.sample(shown, prompts)).save(self.work / f"samples-{run.step:06d}.png")


class UnfinishedError(Exception):
    """A part that stopped on time; what is done lies in its checkpoint."""


def _told(steps: Iterator[tuple[loop.Run, loop.Progress]]) -> Generator[Said, None, loop.Run]:
    """Pass progress on and return the run at its end."""
    run = None
    for run, p in steps:  # noqa: B007
        yield p.step, p.of, f"loss {p.loss:.4f}"
    assert run is not None
    return run


def main() -> None:
    """Train one part or all of them, in the order in which they build on each other."""
    parser = argparse.ArgumentParser(prog="python -m costars.microworld.train", description=__doc__)
    parser.add_argument("part", choices=(*PARTS, "all"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop each part after this long; resume later")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint, if there is one")
    parser.add_argument("--work", type=Path, default=Path("out/train"), help="pictures, checkpoints, sample sheets")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="where the finished weights go")
    parser.add_argument("--sheet-every", type=float, default=5.0, help="minutes between sample sheets")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here; use --device cpu")
    workshop = Workshop(options)
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[said]}"),
    )
    with Progress(*columns) as progress:
        for part in PARTS if options.part == "all" else (options.part,):
            task = progress.add_task(part, total=None, said="")
            try:
                for step, of, said in getattr(workshop, f"train_{part}")():
                    progress.update(task, completed=step, total=of, said=said)
            except UnfinishedError as stop:
                progress.stop()
                print(stop)
                return


if __name__ == "__main__":
    main()
