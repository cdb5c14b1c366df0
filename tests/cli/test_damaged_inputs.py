"""Whatever a file says, a command ends with exit code 0 or 2, one line, and nothing left behind, within 10 seconds.

Valid files are damaged at random, in their bytes and in their values. COSTARS_FUZZ_INPUTS=20000 tries that many inputs
instead of those of the suite, COSTARS_FUZZ_SEED another sequence of them.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save, save_file

from costars.errors import CostarsError, ModelError
from costars.model.hub import Source
from costars.model.load import load_model
from costars.model.model import Model
from costars.model.schedulers import make_scheduler
from costars.model.text_encoder import encode_text
from costars.sample.loop import denoise, prepare_sampler
from costars.types import DenoisingPath, Layout, Plan

INPUTS = int(os.environ.get("COSTARS_FUZZ_INPUTS", "2000"))
SEED = int(os.environ.get("COSTARS_FUZZ_SEED", "0"))
LIMIT_S = 10
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e308, 2**63, 10**30, float("nan"), float("inf"), [], {}, [[]], [1]),
    *("", " ", "0", "left", "~nobody-here/x", "~", ".", "..", "/", "/dev/zero", "../../x", "a/b", "x\0y", "x\ny"),
    *("\ud800", "\udcff", "é", "\u202e", "[/x]", "[red]", "{", "}", "{a}", "{a}{b}", "{a!r}", "<lora:x>", "(((", "\\"),
    *("a" * 5_000, "<lora:" * 3_000, ":1" * 3_000, "(" * 3_000, "9" * 5_000, "builtin", "builtin/ana", "org/name@x"),
    *([0, 0, 1, 1], [0.1, 0.2], ["a"], {"name": "two_stage"}, {"name": ["x"]}, {"concept": "char_a"}, {"a": {"b": {}}}),
]
TOKENS = [
    *(b"\xff", b"\0", b"\n", b"\t", b"[", b"{", b'"', b"'", b":", b"- ", b"&a ", b"*a", b"!!int x", b"!!binary x"),
    *(b"<<", b"2026-11-26", b".nan", b"9" * 6_000, b"[" * 3_000, b"{" * 3_000, b"0x" + b"f" * 5_000, b"---", b"%"),
    *(b"\xef\xbb\xbf", b"\\ud800", b"1e999", b"NaN", b"null", b"true", b"-1", b"? ", b"a.b", b"=", b"#", b"\r"),
    *(b"PK\x03\x04", b"\x80\x02"),
]


def damage_bytes(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(5):
            case 0 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 1:
                data[at:at] = rng.choice(TOKENS)
            case 2:
                del data[at : at + rng.choice((1, 4, 50))]
            case 3:
                data[at : at + rng.choice((0, 1, 4, 8))] = rng.randbytes(rng.choice((1, 4, 8)))
            case 4:
                data = data[:at] if rng.random() < 0.5 else data + data[at:]
    return bytes(data)


def damage_value(value: Any, rng: random.Random) -> Any:
    """The value with one of its parts replaced, removed, renamed or repeated."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        match rng.randrange(8):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                return {**value, rng.choice(("x", "", "\ud800", "name", "a")): rng.choice(VALUES)}
            case 2:
                return {(rng.choice(("x", "../x", "a\n")) if k == key else k): v for k, v in value.items()}
        return {**value, key: damage_value(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        i = rng.randrange(len(value))
        match rng.randrange(4):
            case 0:
                return value[:i]
            case 1:
                return value + value * rng.choice((1, 50))
        return [*value[:i], damage_value(value[i], rng), *value[i + 1 :]]
    return rng.choice(VALUES)


def damaged_json(content: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.3:
        return damage_bytes(content, rng)
    return json.dumps(damage_value(json.loads(content), rng)).encode()


def damaged_yaml(content: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.4:
        return damage_bytes(content, rng)
    return json.dumps(damage_value(yaml.safe_load(content), rng)).encode()  # JSON is YAML


def damaged_tensors(content: bytes, rng: random.Random) -> bytes:
    """A .safetensors file with another header, other data, or both."""
    length = struct.unpack("<Q", content[:8])[0]
    header, data = content[8 : 8 + length], content[8 + length :]
    match rng.randrange(4):
        case 0:
            return damage_bytes(content, rng)
        case 1:
            parsed = json.loads(header)
            metadata = parsed.setdefault("__metadata__", {})
            card = json.loads(metadata.get("costars", '{"x": {"y": 1}}'))
            for key in ("costars", "ss_tag_frequency", "lora_adapter_metadata", "modelspec.trigger_phrase"):
                if rng.random() < 0.5:
                    metadata[key] = rng.choice(
                        (json.dumps(damage_value(card, rng)), "{", "[" * 2_000, "", "\u202e", "9" * 5_000)
                    )
            header = json.dumps(parsed).encode()
        case 2:
            header = json.dumps(damage_value(json.loads(header), rng)).encode()
        case 3:
            number = rng.choice((b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\xff\xff"))  # nan, inf, nan
            data = number * (len(data) // 4) + data[len(data) // 4 * 4 :]
    return struct.pack("<Q", len(header)) + header + data


Damage = Callable[[bytes, random.Random], bytes]
# file in the folder -> (how it is damaged, share of the inputs, what reads it: words of a command line, or a function)
Case = tuple[str, Damage, int, tuple[str, ...] | str]
RENDER, LORA = ("--out", "out"), "lora/adapter_model.safetensors"
CASES: list[Case] = [
    ("scene.yaml", damaged_yaml, 14, ("render", "scene.yaml", *RENDER)),
    ("scene.json", damaged_json, 8, ("plan", "scene.json", *RENDER)),
    ("scene.toml", damage_bytes, 5, ("render", "scene.toml", *RENDER)),
    ("picture.png", damage_bytes, 5, ("render", "picture.png", *RENDER)),
    ("chunk", damaged_json, 5, "picture"),
    ("settings", damaged_json, 6, "settings"),
    ("plan/plan.json", damaged_json, 10, ("render", "plan", *RENDER)),
    ("plan/layout.safetensors", damaged_tensors, 5, ("render", "plan", *RENDER)),
    ("plan/layout.png", damage_bytes, 2, ("render", "plan", *RENDER)),
    ("plan/masks/a.png", damage_bytes, 4, ("render", "plan", *RENDER)),
    ("plan/plan.json", damaged_json, 3, "overwrite"),
    ("left.png", damage_bytes, 4, "mask"),
    ("left.png", damage_bytes, 2, "control"),
    ("library/char_a.safetensors", damaged_tensors, 8, ("concepts", "list")),
    ("library/char_a.safetensors", damaged_tensors, 3, ("concepts", "show", "char_a")),
    (LORA, damaged_tensors, 8, ("concepts", "inspect", LORA)),
    ("lora/adapter_config.json", damaged_json, 4, ("concepts", "import", LORA, "--name", "x")),
    ("lora/adapter_model.civitai.info", damaged_json, 4, ("concepts", "inspect", LORA)),
    (LORA, damaged_tensors, 3, "export"),
    ("train.yaml", damaged_yaml, 12, ("train", "train.yaml", "--out", "x.safetensors")),
    ("mia/red.txt", damage_bytes, 3, "images"),
    ("mia/red.png", damage_bytes, 4, "images"),
    ("mia/red.mask.png", damage_bytes, 3, "images"),
    ("listed/list.jsonl", damage_bytes, 3, "listed"),
    ("listed/list.jsonl", damaged_json, 3, "listed"),
    ("checkpoint.safetensors", damaged_tensors, 4, "checkpoint"),
    ("environment", damaged_json, 6, "environment"),
    ("single.safetensors", damaged_tensors, 3, "model"),
]  # fmt: skip
MODEL_FILES = (
    *("model_index.json", "unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"),
    *("text_encoder/config.json", "tokenizer/tokenizer_config.json", "tokenizer_2/tokenizer_config.json"),
    *("tokenizer/vocab.json", "tokenizer/merges.txt", "vae/diffusion_pytorch_model.safetensors"),
)
DAMAGES: Mapping[str, Damage] = {".json": damaged_json, ".txt": damage_bytes, ".safetensors": damaged_tensors}
MODEL_SHARE = 60  # a checkpoint takes about a hundred times as long as another file


@pytest.fixture
def home(folder, library, golden, monkeypatch):
    """The folder of the command line with a valid file of every kind."""
    scene = yaml.safe_load((folder / "scene.yaml").read_text())
    (folder / "scene.json").write_text(json.dumps(scene))
    (folder / "scene.toml").write_text(
        'prompt = "{a} and {b}"\nmodel = "tiny-sdxl"\nsteps = 4\nsize = [64, 64]\n'
        '[cast.a]\nconcept = "char_a"\nwhere = "left.png"\n[cast.b]\nconcept = "char_b"\nwhere = [0.5, 0.0, 1.0, 1.0]\n'
    )
    (folder / "chunk").write_text(json.dumps({"scene": scene, "hashes": {}, "versions": {}}))
    info = PngInfo()
    info.add_text("costars", (folder / "chunk").read_text())
    Image.new("RGB", (8, 8)).save(folder / "picture.png", pnginfo=info)
    (folder / "settings").write_text(json.dumps(scene["cast"] | {k: scene[k] for k in ("prompt", "model", "seed")}))
    (folder / "environment").write_text(
        json.dumps({"LIBRARY": "x", "DEVICE": "cpu", "MAX_ROWS": "2", "MEMORY": "auto"})
    )
    settings = {"steps": 2, "rank": 2, "unet_lr": 1e-4, "unet": "lora"}
    train = {"recipe": "lora", "name": "mia", "class": "woman", "images": "mia", "settings": settings}
    (folder / "train.yaml").write_text(yaml.safe_dump(train))
    tensors = dict(list(load_file(golden / "char_a.safetensors").items())[:6])
    layer = "base_model.model.unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    factors = {f"{layer}.lora_A.weight": torch.ones(2, 48), f"{layer}.lora_B.weight": torch.ones(48, 2)}
    (folder / "lora").mkdir()
    save_file(factors, folder / "lora" / "adapter_model.safetensors", {"costars": '{"class_name": "man"}'})
    (folder / "lora" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    (folder / "lora" / "adapter_model.civitai.info").write_text(
        json.dumps({"trainedWords": ["zx"], "model": {"name": "m"}})
    )
    save_file(tensors, library / "char_a.safetensors", {"costars": '{"class_name": "man", "trigger": "a"}'})
    (folder / "library").symlink_to(library)
    for name in ("mia", "listed"):
        (folder / name).mkdir()
        Image.new("RGB", (16, 16), "red").save(folder / name / "red.png")
    Image.new("L", (16, 16), 255).save(folder / "mia" / "red.mask.png")
    (folder / "mia" / "red.txt").write_text("a zx woman in a park")
    (folder / "listed" / "list.jsonl").write_text(json.dumps({"file_name": "red.png", "text": "a woman", "mask": ""}))
    facts = {"step": "1", "seconds": "1.0", "losses": "[0.5]", "recipe": "{}", "base_sha256": "", "pictures_sha256": ""}
    save_file({"parameter/a": torch.ones(2), "exp_avg/a": torch.ones(2)}, folder / "checkpoint.safetensors", facts)
    single = {"model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": torch.ones(4, 2048)}
    (folder / "single.safetensors").write_bytes(save({**single, "conditioner.embedders.0.x": torch.ones(2)}))
    monkeypatch.setenv("COLUMNS", "80")
    return folder


@pytest.fixture
def run(cli, home, tiny, make_scene, make_region, monkeypatch) -> Callable[[tuple[str, ...] | str], str]:
    """Read what was damaged, by a command line or a function; returns "ok", or the line that says why not."""
    from costars import studio
    from costars.cli import main as cli_main
    from costars.concepts.export import export_concept
    from costars.concepts.load import load_concept
    from costars.model.controlnet import load_control_image
    from costars.records.plan import write_plan
    from costars.scene.files import load_scene, with_settings
    from costars.scene.scene import CastMember
    from costars.segment.mask_files import check_mask
    from costars.settings import machine_settings
    from costars.train.data.images import read_image_folder
    from costars.train.run import read_objective_state

    layout = Layout(Image.new("RGB", (64, 64)), torch.ones(5, 4, 8, 8), {}, "a man and a woman", 8)
    regions = {"a": make_region("man", (0, 0, 0.5, 1)), "b": make_region("woman", (0.5, 0, 1, 1), depth=1)}
    scene = load_scene(home / "scene.yaml")
    write_plan(Plan(scene, layout, regions), home / "plan")

    class Stub:
        """A studio that has no models: reaching it means that everything was accepted."""

        settings = machine_settings()

        def __getattr__(self, name: str) -> Any:
            raise CostarsError("accepted")

    monkeypatch.setattr(studio, "open_studio", lambda *_, **__: Stub())
    monkeypatch.setattr(cli_main, "_open_studio", lambda *_, **__: Stub())

    def embedded() -> None:
        info = PngInfo()
        info.add_text("costars", (home / "chunk").read_text(errors="replace"))
        Image.new("RGB", (8, 8)).save(home / "made.png", pnginfo=info)
        try:
            load_scene(home / "made.png")
        finally:
            (home / "made.png").unlink()

    def set_values() -> None:
        values = json.loads((home / "settings").read_text(errors="replace"))
        for key, value in values.items() if isinstance(values, dict) else ():
            with_settings(scene, [f"{key}={value if isinstance(value, str) else json.dumps(value)}"])

    def environment() -> None:
        values = json.loads((home / "environment").read_text(errors="replace"))
        for name, value in values.items() if isinstance(values, dict) else ():
            text = str(value).replace("\0", "").encode(errors="ignore").decode()
            with monkeypatch.context() as patch:
                patch.setenv(
                    f"COSTARS_{name}".replace("=", "").encode(errors="ignore").decode().replace("\0", ""), text
                )
                machine_settings()

    def export() -> None:
        path = home / "lora" / "adapter_model.safetensors"
        try:
            export_concept(load_concept(path, "x", "x"), {}, "diffusers", home / "exported.safetensors", True)
        finally:
            (home / "exported.safetensors").unlink(missing_ok=True)

    functions: Mapping[str, Callable[[], object]] = {
        "picture": embedded,
        "settings": set_values,
        "environment": environment,
        "overwrite": lambda: write_plan(Plan(scene, layout, regions), home / "plan"),
        "mask": lambda: check_mask(CastMember(concept="x", where=str(home / "left.png")), (64, 64)),
        "control": lambda: load_control_image(str(home / "left.png"), (64, 64), tiny),
        "export": export,
        "images": lambda: read_image_folder(home / "mia"),
        "listed": lambda: read_image_folder(home / "listed"),
        "checkpoint": lambda: read_objective_state(home / "checkpoint.safetensors"),
        "model": lambda: load_model(Source("x", home / "single.safetensors"), torch.device("cpu"), torch.float32),
    }

    def read(reader: tuple[str, ...] | str) -> str:
        if isinstance(reader, tuple):
            code, _, err = cli(*reader)
            assert code in (0, 2), (code, err)
            lines = err.splitlines()
            assert code == 0 or (len(lines) == 1 and lines[0].startswith("costars: ")), err
            return "ok" if code == 0 or lines[0] == "costars: accepted" else lines[0]
        try:
            functions[reader]()
        except json.JSONDecodeError:
            return "the test's own file"
        except CostarsError as error:
            return str(error) or "?"
        return "ok"

    return read


@contextmanager
def time_limit() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"an input took more than {LIMIT_S} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def snapshot(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def try_input(case: Case, home: Path, run: Callable[..., str], rng: random.Random) -> str:
    """Damage one file, read it, and bring everything back; returns the kind of outcome."""
    name, damage, _, reader = case
    path = home / name
    before, names = path.read_bytes(), snapshot(home)
    content = damage(before, rng)
    path.write_bytes(content)
    try:
        with time_limit():
            line = run(reader)
        added = snapshot(home) - names - {"library/x.safetensors"}
        assert reader == "overwrite" or not added, f"left behind: {sorted(added)}"
        assert "\n" not in line, repr(line)
    except BaseException:
        kept = Path(os.environ.get("COSTARS_FUZZ_KEEP", home.parent)) / f"failed-{path.name}"
        kept.write_bytes(content)
        print(f"{name} read by {reader}: the input is kept as {kept}", file=sys.stderr)
        raise
    finally:
        path.write_bytes(before)
        (home / "library" / "x.safetensors").unlink(missing_ok=True)
        if reader == "overwrite":
            shutil.rmtree(home / "plan")
            shutil.copytree(home / "whole", home / "plan")
    return "accepted" if line == "ok" else "refused"


def test_damaged_files_are_read_or_refused_in_one_line(home, run, capsys):
    shutil.copytree(home / "plan", home / "whole")
    rng, outcomes, began = random.Random(SEED), Counter[str](), time.process_time()
    weights = [share for _, _, share, _ in CASES]
    for case in rng.choices(CASES, weights, k=INPUTS):
        outcomes[f"{case[0]} {try_input(case, home, run, rng)}"] += 1
    assert sum(outcomes.values()) == INPUTS
    report = ", ".join(f"{name} {count}" for name, count in sorted(outcomes.items()))
    with capsys.disabled():
        if "COSTARS_FUZZ_INPUTS" in os.environ:
            print(f"\n{INPUTS} inputs in {time.process_time() - began:.0f} s: {report}")
    accepted = sum(count for name, count in outcomes.items() if name.endswith("accepted"))
    assert 0.05 * INPUTS < accepted < 0.95 * INPUTS, report  # or the inputs are damaged too much, or too little


def draw(model: Model) -> None:
    text = encode_text(model.encoders, "a woman", (), model.device)
    sampler = prepare_sampler(make_scheduler("checkpoint", model.scheduler), 1, model.device, (32, 32), 1.0)
    for step in denoise(model, sampler.noise(model), [DenoisingPath("x", text)], sampler):
        model.decode(step.latent)


def test_damaged_checkpoints_draw_or_are_refused_before_drawing(golden, tmp_path):
    """A checkpoint that loads also draws: a wrong value is not found only while drawing."""
    shutil.copytree(golden / "tiny-sdxl", tmp_path / "model")
    rng, outcomes = random.Random(SEED), Counter[str]()
    for _ in range(max(1, INPUTS // MODEL_SHARE)):
        name = rng.choice(MODEL_FILES)
        path = tmp_path / "model" / name
        before = path.read_bytes()
        path.write_bytes(DAMAGES[path.suffix](before, rng))
        try:
            with time_limit():
                draw(load_model(Source("x", tmp_path / "model"), torch.device("cpu"), torch.float32))
            outcomes["drawn"] += 1
        except ModelError as error:
            is_of_weights = path.suffix == ".safetensors"  # non-finite ones are found when the picture is decoded
            assert "\n" not in str(error) and (is_of_weights or "not finite" not in str(error))
            outcomes["refused"] += 1
        except BaseException:
            print(f"{name}: {path.read_bytes()[:3000]!r}", file=sys.stderr)
            raise
        finally:
            path.write_bytes(before)
    assert min(outcomes["drawn"], outcomes["refused"]) > 0.1 * outcomes.total(), outcomes
