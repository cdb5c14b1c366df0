"""One run: renderers and training processes side by side, ended by the clock, reported in one file."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from costars_world.world2.training.cast import make_casting
from costars_world.world2.training.clock import Clock, Shares
from costars_world.world2.training.context import Context, Options
from costars_world.world2.training.files import NETS, REPORT, write_json
from costars_world.world2.training.plan import Counts, make_plan
from costars_world.world2.training.rendering import Job, render_slots
from costars_world.world2.training.store import DONE, FAILED, make_store
from costars_world.world2.training.world import World

# name -> module and function. The modules are imported in the process itself: what forks has never seen torch,
# because some libraries look for a GPU when they are imported, and a GPU does not survive a fork.
PROCESSES = {
    "vae": ("vae_process", "run_vae"),
    "nets": ("nets_process", "run_nets"),
    "base": ("base_process", "run_base"),
}
REPORT_EVERY_S = 10.0
GRACE_S = 12.0  # from the request to end until a process is killed
_FORK = multiprocessing.get_context("fork")


def supervise(world: World, counts: Counts, options: Options, clock: Clock, workers: int, seed_offset: int) -> bool:
    """Run everything until the base is done or the time is over; returns whether the base ended well."""
    for folder in (options.out, options.work, *filter(None, [options.keep])):
        folder.mkdir(parents=True, exist_ok=True)
    names = _prepare(options)
    plan = make_plan(counts, len(world.classes), seed_offset)
    store = make_store(plan, max(len(table) for table in world.attributes.values()))
    casting = make_casting(world, counts.line_up)
    context = Context(clock, plan, store, world, casting, options)
    job = Job(plan, store, world, casting, counts.portraits, _FORK.Value("q", 0))
    context.log("run", f"{plan.count} pictures planned, {workers} renderers, processes {', '.join(names)}")
    sys.stdout.flush()
    renderers = [_start(_quietly, (render_slots, job)) for _ in range(workers)]
    processes = {name: _start(_train, (name, context)) for name in names}
    with _passing_on(processes):
        _watch(context, processes)
    for process in renderers:
        process.kill()
    _write_report(context, processes)
    _keep(options)
    return processes["base"].exitcode == 0


def _prepare(options: Options) -> tuple[str, ...]:
    """Put an earlier run's autoencoder and nets in place; returns the processes that are still needed."""
    if options.init is None:
        return tuple(PROCESSES)
    nets = options.init / NETS
    if nets.exists():
        shutil.copy(nets, options.out / NETS)
        return ("base",)
    return ("nets", "base")


def _start(target: Callable[..., None], arguments: tuple[Any, ...]) -> Any:
    process = _FORK.Process(target=target, args=arguments)
    process.start()
    return process


def _quietly(function: Callable[[Any], None], argument: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    function(argument)


def _train(name: str, context: Context) -> None:
    """One training process: it ends its phases when asked to, and prints what went wrong."""

    def ask(signum: int, frame: Any) -> None:
        context.clock.stop.asked = True

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        module, function = PROCESSES[name]
        torch = import_module("torch")
        torch.set_num_threads(context.options.threads)
        torch.manual_seed(0)
        getattr(import_module(f"{__package__}.{module}"), function)(context)
    except Exception:
        context.log(name, f"failed\n{traceback.format_exc()}")
        sys.stdout.flush()
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)  # at once: nothing is left to do, and interpreters with a GPU take seconds to end


@contextlib.contextmanager
def _passing_on(processes: dict[str, Any]) -> Any:
    """Within, a request to end goes to the training processes."""

    def pass_on(signum: int, frame: Any) -> None:
        for process in processes.values():
            if process.is_alive():
                process.terminate()

    before = {s: signal.signal(s, pass_on) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(context: Context, processes: dict[str, Any]) -> None:
    """Report until the base has ended or the time is over, then end what still runs."""
    clock, written = context.clock, 0.0
    while processes["base"].is_alive() and clock.until(1.0) > 0:
        time.sleep(0.25)
        if clock.now() - written >= REPORT_EVERY_S:
            status = context.store.status
            context.log("run", f"{int((status == DONE).sum())} pictures, {int((status == FAILED).sum())} failed")
            _write_report(context, processes)
            written = clock.now()
    others = [p for name, p in processes.items() if name != "base"]
    for process in others:  # what they measure last may still come
        process.join(max(0.0, min(clock.until(1.0), GRACE_S)))
    asked = time.monotonic()
    for process in processes.values():
        if process.is_alive():
            process.terminate()
    for process in processes.values():
        process.join(max(0.1, asked + GRACE_S - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _write_report(context: Context, processes: dict[str, Any]) -> None:
    """Merge what the processes have reported."""
    status, plan, options = context.store.status, context.plan, context.options
    done = context.store.done()
    content: dict[str, Any] = {
        "seconds": round(context.clock.now(), 1),
        "rendered": int(done.sum()),
        "failed": int((status == FAILED).sum()),
        "rendered_by_shape": np.bincount(plan.shapes[done], minlength=4).tolist(),
        "exit_codes": {name: p.exitcode for name, p in processes.items()},
        "options": {k: str(v) for k, v in vars(options).items()},
    }
    for name in ("vae", "decoder", "segmenter", "judge", "base"):
        path = options.work / f"{name}.json"
        if path.exists():
            content[name] = json.loads(path.read_text())
    write_json(options.out / REPORT, content)


def _keep(options: Options) -> None:
    """Copy the results beside the state that a later run on the same machine goes on from."""
    if options.keep is not None:
        for path in sorted(Path(options.out).iterdir()):
            if path.is_file():
                shutil.copy(path, options.keep / path.name)


def smoke_shares() -> Shares:
    """A run of about a minute: every phase long enough for its speed to be read."""
    return Shares(vae=0.5, segmenter=0.3, judge=0.45, decoder=0.6, base=0.82)
