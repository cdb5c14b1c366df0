"""Compare how OpenMP threads wait: the runtime's default, OMP_WAIT_POLICY=PASSIVE, and costars' bounded spinning.

Renders the demo scene with 8 steps in child processes, one per policy, which take turns. Measures on the machine as it
is, then beside busy processes. Prints the median seconds and their ratio to the default:

    python bench/waiting.py [--rounds 10] [--busy 2] [--steps 8]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from costars.threads import BOUNDED_WAITING

SCENE = Path(__file__).parents[1] / "examples" / "pair.yaml"
POLICIES: Mapping[str, Mapping[str, str]] = {
    "default": {},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    f"GOMP_SPINCOUNT={BOUNDED_WAITING['GOMP_SPINCOUNT']}": BOUNDED_WAITING,
}
# Loads the model, renders once to warm up, then renders once for each line of its input and prints the seconds. It does
# not use costars' command line, which would set the policy itself.
CHILD = """
import sys, time
from pathlib import Path
from costars import RegionError, load_scene, open_studio
studio, scene = open_studio("cpu"), load_scene(Path(sys.argv[1])).model_copy(update={"steps": int(sys.argv[2])})
for seed in range(100):
    try:
        plan = studio.plan(scene.model_copy(update={"seed": seed}))
        break
    except RegionError:
        pass
def render():
    started = time.perf_counter()
    studio.render(studio.plan(plan.scene))
    return time.perf_counter() - started
render()
print("ready", flush=True)
for _ in sys.stdin:
    print(render(), flush=True)
"""


@contextmanager
def start_renderer(policy: Mapping[str, str], steps: int) -> Iterator[subprocess.Popen[str]]:
    """Start a child process with a wait policy and wait until it has loaded the model."""
    environment = {name: value for name, value in os.environ.items() if name not in BOUNDED_WAITING} | dict(policy)
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(SCENE), str(steps)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        if _read_line(process) != "ready":
            raise RuntimeError("the child process did not load the model")
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def keep_busy(count: int) -> Iterator[None]:
    """Run processes that each use one core, and end with this one even if it is killed."""
    loop = f"import os\nwhile os.getppid() == {os.getpid()}: pass"
    processes = [subprocess.Popen([sys.executable, "-c", loop]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure_render(process: subprocess.Popen[str]) -> float:
    """Let a child render once; returns its seconds."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return float(_read_line(process))


def _read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def compare(processes: Mapping[str, subprocess.Popen[str]], rounds: int, label: str) -> None:
    """Render in turn with each policy and print a table."""
    seconds: dict[str, list[float]] = {name: [] for name in processes}
    for _ in range(rounds):
        for name, process in processes.items():
            seconds[name].append(measure_render(process))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"{label:<8} {name:<24} {median:7.2f} s   ratio {median / medians['default']:5.2f}", flush=True)


def main() -> None:
    """Measure on the machine as it is, then beside busy processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="renders per policy")
    parser.add_argument("--busy", type=int, default=2, help="number of busy processes; 0 measures only without them")
    parser.add_argument("--steps", type=int, default=8, help="sampling steps of the scene")
    options = parser.parse_args()
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(start_renderer(policy, options.steps)) for name, policy in POLICIES.items()
        }
        compare(processes, options.rounds, "idle")
        if options.busy:
            with keep_busy(options.busy):
                time.sleep(1)  # let the scheduler settle
                compare(processes, options.rounds, f"busy {options.busy}")


if __name__ == "__main__":
    main()
