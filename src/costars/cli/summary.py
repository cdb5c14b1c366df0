"""What costars plan and render say about a result: its seed, who is where, and what to do about a bad one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from costars.cli.console import print_line

if TYPE_CHECKING:
    from costars.jobs import PlanJob, RenderJob
    from costars.types import Picture, Plan

PLAN_SECONDS = ("layout", "segment")  # parts of a picture's seconds that its plan took


@dataclass(frozen=True)
class Notes:
    """Prints each note once: those on a scene come before it is drawn, and again with each of its pictures."""

    printed: set[str] = field(default_factory=set)

    def print(self, note: str) -> None:
        """Print a note that has not been printed."""
        if note not in self.printed:
            self.printed.add(note)
            print_line(note)


def print_plan(plan: Plan, job: PlanJob, notes: Notes) -> None:
    """Print the seed, who is where, and the next command."""
    from costars.segment.visibility import describe_extra_figures

    print_seeds([plan.scene.seed], job)
    order = sorted(plan.regions, key=lambda name: plan.regions[name].depth)
    found = ", ".join(f"{name} ({plan.regions[name].class_name}, {plan.regions[name].area:.0%})" for name in order)
    extra = describe_extra_figures("layout", plan.extra_figures, len(plan.regions))
    for note in (*plan.layout.notes, *plan.notes, *extra):
        notes.print(note)
    print_line(f"seed {plan.scene.seed}; from front to back: {found}; to finish it: costars render {job.out} --out DIR")


def print_other_files(source: Path, picture: Picture) -> None:
    """Say which files are not those that the picture at source was made with: this one may look different."""
    from costars.records.png_metadata import find_other_files

    for changed in find_other_files(source, picture):
        print_line(f"{changed}: is another file than {source} was made with", style="bold")


def print_picture(picture: Picture, job: RenderJob, notes: Notes) -> None:
    """Print the notes on a picture, who cannot be seen in it, and what it cost."""
    for note in picture.notes:
        notes.print(note)
    for line in describe_lost(picture, job):
        print_line(line, style="bold")
    rows, is_planned = picture.rows, job.plan_folder is not None
    seconds = ", ".join(
        f"{name} {value:.1f}" for name, value in picture.seconds.items() if not (is_planned and name in PLAN_SECONDS)
    )
    stage1 = f"stage 1 {rows['stage1']}{' (in the plan)' if is_planned else ''}"
    print_line(
        f"seed {picture.scene.seed}; UNet rows: {stage1}, stage 2 {rows['stage2']}, at most {picture.max_rows} per "
        f"call; seconds: {seconds}; memory: {picture.memory}"
    )
    if picture.plan is not None and not rows["stage2"]:
        print_line(
            f"no identity takes part: start {picture.scene.start} leaves no step for stage 2; this is the layout",
            style="bold",
        )


def describe_lost(picture: Picture, job: RenderJob) -> list[str]:
    """A line for each member that is not visible, or looks like something else, with a remedy that was not tried."""
    if picture.plan is not None and picture.plan.edited:
        remedy = "check its mask and depth in the plan"
    elif job.plan_folder is not None:
        remedy = "plan the scene with another --seed, or give the member a larger mask in the plan"
    elif job.retries:
        remedy = (
            f"{job.scene.count + job.retries} seeds were tried; start from another --seed, set its place "
            "(cast.NAME.where), or cast fewer members"
        )
    else:
        remedy = "try another --seed, or --retries 5"
    return [f"{name} {_describe_loss(picture, name)}; {remedy.replace('NAME', name)}" for name in picture.lost]


def _describe_loss(picture: Picture, name: str) -> str:
    seen_as = picture.seen_as.get(name)
    where = f"where the plan has {name}"
    return f"is not visible {where}" if seen_as is None else f"looks like a {seen_as} {where}"


def print_seeds(seeds: Sequence[int], job: PlanJob | RenderJob) -> None:
    """Name the seeds that were tried and did not show every member."""
    first = job.scene.seed
    failed = [str(seed) for seed in range(first, max(seeds, default=first)) if seed not in seeds]
    if failed:
        print_line(f"seeds that left a member out: {', '.join(failed)}")
