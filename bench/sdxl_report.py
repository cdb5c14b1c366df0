"""The report of bench/sdxl.py: a JSON file that is complete after every measurement, and a printed table."""

from __future__ import annotations

import gc
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Report:
    """Results by name, the measurements that were skipped, and those that failed with their errors.

    The file is written after every measurement, so that an interrupted run leaves what it has.
    """

    facts: dict[str, Any]
    out: Path | None
    deadline: float
    began: float = field(default_factory=time.perf_counter)
    results: dict[str, Any] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def measure(self, name: str, run: Callable[[], Any]) -> Any:
        """Run a measurement and store its result under a name; None if it is skipped or fails."""
        if time.perf_counter() - self.began > self.deadline:
            self.skipped.append(name)
            print(f"{name}: skipped, the deadline of {self.deadline:.0f} s has passed", flush=True)
            self.write()
            return None
        began, result = time.perf_counter(), None
        try:
            self.results[name] = result = run()
        except Exception as error:  # the other measurements still run
            traceback.print_exc()
            self.failed[name] = f"{type(error).__name__}: {error}"
        state = "failed" if name in self.failed else "done"
        print(f"{name}: {state} in {time.perf_counter() - began:.1f} s", flush=True)
        self.write()
        gc.collect()
        return result

    def write(self) -> None:
        """Replace the file, if there is one, by what was measured so far."""
        if self.out is None:
            return
        content = {**self.facts, "measured": self.results, "skipped": self.skipped, "failed": self.failed}
        content["seconds"] = time.perf_counter() - self.began
        part = self.out.with_suffix(".new")
        part.write_text(json.dumps(content, indent=2) + "\n")
        part.replace(self.out)

    def print(self) -> None:
        """Print the table, then the names of what was skipped or failed."""
        print("\n".join(format_table(self.results)))
        if self.skipped:
            print(f"skipped: {', '.join(self.skipped)}")
        if self.failed:
            print(f"failed: {', '.join(f'{name} ({error})' for name, error in self.failed.items())}")


def format_table(results: dict[str, Any]) -> list[str]:
    """One line for each result."""
    lines = []
    if "ceilings" in results:
        lines.append(
            "copies at {copy_tb_s:.2f} TB/s, products at {matmul_tflop_s:.0f} TFLOP/s".format(**results["ceilings"])
        )
    for name, result in results.items():
        if "row_seconds" in result:
            steps = ", ".join(f"{2 * int(n)} rows {1e3 * s:.0f} ms" for n, s in result["step_seconds"].items())
            lines.append(f"{name}: a step of {steps}")
        elif "base_call" in result:
            base, concept = 1e3 * result["base_call"], 1e3 * result["concept_call"]
            lines.append(f"{name}: a call of four base rows {base:.0f} ms, of a concept's two rows {concept:.0f} ms")
        elif "rows_per_step" in result:
            lines.append(_format_row(name, result))
    for dtype, variants in results.get("precision", {}).get("relative_error", {}).items():
        each = ", ".join(
            f"{variant} {100 * e['layout']:.3f} and {100 * e['personalise']:.3f} %" for variant, e in variants.items()
        )
        lines.append(f"{dtype}, error of the latents against float32: {each}")
    return lines


def _format_row(name: str, row: dict[str, Any]) -> str:
    seconds, each, peak = row["seconds"], row["step_seconds"], row["peak_gib"]
    line = f"{name}: step {1e3 * each['layout']:.0f} and {1e3 * each['personalise']:.0f} ms; "
    line += f"layout {seconds['layout']:.2f} s, personalise {seconds['personalise']:.2f} s, {row['rows']} rows"
    line += f"; decode {seconds['decode']:.2f} s"
    if "over_diffusers" in row:
        line += f"; {row['over_diffusers']:.2f} x as long as diffusers' pipeline for these rows"
    if "times_faster_than_official" in row:
        line += f"; {row['times_faster_than_official']:.2f} x as fast as the official schedule"
    if peak["layout"] is not None:
        line += f"; peak {peak['layout']:.1f} and {peak['personalise']:.1f} GiB"
    return line
