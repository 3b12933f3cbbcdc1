"""Write a trained network in a format of the field, read it back and compare.

python scripts/export.py RUN --to safetensors | robustbench | onnx | folder | vnnlib [--out PATH]

RUN is a committed run by name, or the path of a run folder. safetensors: the weights, with the run's config and its classes in the
metadata. robustbench: a state dict for RobustBench's `Ding2020MMANet`, and its model_info JSON, of WRN-28-4 on colour images
alone. onnx: the network itself, for batches of any size. folder: ready to upload, the run with its evaluations and card, and the
network as anyone loads it, in float16 where nothing is lost; LeNet5 as safetensors, others as ONNX too. vnnlib: a folder for
verifiers, the ONNX file with a VNN-LIB 2.0 property for each of the first test images at a radius of its own, and
instances.csv as VNN-COMP has it.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from errors import UserError, exits_on_user_error
from evaluations.flags import EvaluationFlags
from evaluations.in_memory import margins
from evaluations.results import checkpoint_rows, is_standard, quoted, same_eps
from evaluations.subject import load_subject
from flags import Parser, number, whole
from networks.build import build_model
from networks.foreign import shape_of
from networks.names import is_built_in
from records.checkpoint import load_weights
from records.pretrained import Pretrained, load_pretrained
from reports import require
from utils import generator, write_atomically
from validation import require_positive

TOLERANCE = 1e-5  # of logits, between the network and what is read back
EXTRAS = "requirements/export.txt"
ROBUSTBENCH_RADIUS = {"Linf": ("8/255", 8 / 255), "L2": ("0.5", 0.5)}


# A network in some format: its files by ending, of which the first holds the network, and what reads that one back as a
# function, images -> logits.
Written = tuple[dict[str, bytes], Callable[[Path], Callable[[Tensor], Tensor]]]


def built(source: Pretrained, weights: dict[str, Tensor], size: int | None) -> nn.Module:
    """The network with these weights, in eval mode. size: the side of its images, None: read off the weights.

    :raises UserError: if it is not a built-in one.
    """
    if not is_built_in(source.config.network):
        raise UserError(
            f"network {source.config.network}: is code of yours, which is not run here: make it in a script of yours, fill it "
            'with torch.hub.load(…, "mma", name=RUN, network=…) and save it from there'
        )
    channels, height, width, classes = shape_of(weights)
    model = build_model(source.config.network, channels, size or height, size or width, classes)
    load_weights(model, weights, source.path)
    return model.eval()


def safetensors(
    source: Pretrained, model: nn.Module, images: Tensor, weights: Mapping[str, Tensor] | None = None
) -> Written:
    """The weights, the model's own if none are given; as metadata the config in JSON, and the checkpoint's sha256."""
    require("safetensors", by=EXTRAS)
    from safetensors.torch import load_file, save

    state = {key: tensor.contiguous() for key, tensor in (weights or model.state_dict()).items()}
    metadata = {"format": "pt", "config": json.dumps(source.config.to_dict()), "sha256": source.sha256}
    metadata["classes"] = json.dumps(source.config.class_names)
    return {".safetensors": save(state, metadata)}, lambda file: built(source, load_file(file), images.shape[-1])


def robustbench(source: Pretrained, model: nn.Module, images: Tensor) -> Written:
    """The state dict, and the model_info JSON beside it."""
    network, (channels, _, _, classes) = source.config.network, shape_of(source.weights)
    if (network, channels, classes) != ("wrn28_4", 3, 10):
        raise UserError(
            f"--to robustbench: {network} on {channels} channels and {classes} classes: RobustBench's class is a "
            "WRN-28-4 on colour images and 10 classes: choose safetensors or onnx"
        )
    buffer, size, state = io.BytesIO(), images.shape[-1], model.state_dict()
    # Ours begin with `1.`.
    theirs = {key: key[2:].replace("convgroup", "block").replace("conv_shortcut", "convShortcut") for key in state}
    torch.save({theirs[key]: tensor for key, tensor in state.items()}, buffer)
    info = (json.dumps(model_info(source), indent=2) + "\n").encode()

    def read(file: Path) -> nn.Module:
        stored = torch.load(file, weights_only=True)
        return built(source, {key: stored[name] for key, name in theirs.items()}, size)

    return {".pt": buffer.getvalue(), ".json": info}, read


def model_info(source: Pretrained) -> dict[str, object]:
    """RobustBench's description, as far as this very checkpoint was evaluated on test images at RobustBench's radius.

    Paper, authors and venue are left to be filled in by hand.
    """
    config, (text, radius) = source.config, ROBUSTBENCH_RADIUS[source.config.norm]
    info: dict[str, object] = {"name": source.path.resolve().parent.name, "number_forward_passes": 1}
    info |= {"dataset": config.dataset, "architecture": "WideResNet-28-4", "eps": text}
    best = {}  # field -> the row it is taken from
    for attack, field in (("pgd", "reported"), ("autoattack", "autoattack_acc")):
        path = source.path.with_name(f"eval_{attack}_{config.norm}.json")
        rows = checkpoint_rows(path, {"model_sha256": source.sha256, "dataset": config.dataset})
        best.update((field, row) for row in quoted(filter(is_standard, rows)) if same_eps(row["eps"], radius))
    info |= {field: f"{100 * row['robust_acc']:.2f}" for field, row in best.items()}
    if best:
        info["clean_acc"] = f"{100 * max(best.values(), key=lambda row: row['n'])['clean_acc']:.2f}"
        info["footnote"] = "; ".join(f"{field}: {row['n']} test images" for field, row in best.items())
    return info


def onnx(source: Pretrained, model: nn.Module, images: Tensor) -> Written:
    """The network, input `images`, output `logits`, the first dimension of both of any size."""
    require("onnx", "onnxscript", "onnxruntime", by=EXTRAS)
    from onnxruntime import InferenceSession

    buffer = io.BytesIO()
    how = {"input_names": ["images"], "output_names": ["logits"], "dynamo": True, "verbose": False}
    with warnings.catch_warnings(action="ignore"):  # of the exporter's own insides
        program = torch.onnx.export(model, (images,), **how, dynamic_shapes=({0: torch.export.Dim("batch")},))
        program.model.metadata_props["classes"] = json.dumps(source.config.class_names)
        program.save(buffer)

    def read(file: Path) -> Callable[[Tensor], Tensor]:
        session = InferenceSession(file, providers=["CPUExecutionProvider"])
        return lambda x: torch.from_numpy(session.run(["logits"], {"images": x.numpy()})[0])

    return {".onnx": buffer.getvalue()}, read


def properties(source: Pretrained, model: nn.Module, out: Path, count: int, share: float, data_root: str | None) -> int:
    """For each of the first test images that is right: whether no image within `share` of AN-PGD's margin is of another class;
    how many they are.

    A VNN-LIB property asserts the opposite: it has an answer if such an image exists. Beyond 1 one is known.

    :raises UserError: under L2, whose balls are not linear, and if the folder is there.
    """
    config = source.config
    if config.norm != "Linf":
        raise UserError(
            f"--to vnnlib: {source.path} was trained under {config.norm}: VNN-LIB knows boxes, that is Linf, alone"
        )
    if out.exists():
        raise UserError(f"--out {out}: there already: remove it, or name another")
    asked = EvaluationFlags(model=str(source.path), test_size=count, data_root=data_root)
    x, y, _ = load_subject(asked, torch.device("cpu")).test.everything()
    found = margins("Linf", config.search_maxeps, steps=40, projections=1, targets=9, batch_size=200)(model, x, y)
    contents, _ = onnx(source, model, x[:1].repeat(7, 1, 1, 1))
    out.mkdir(parents=True)
    files, instances, (*_, classes) = {"network.onnx": contents[".onnx"]}, [], shape_of(source.weights)
    for row in ((found.eps > 0) & found.found).nonzero().flatten().tolist():
        eps, label = float(found.eps[row]), int(y[row])
        lines = [
            f"; test image {row} of {config.dataset}, class {label}: AN-PGD finds another class at {eps:.6g},",
            f"; and the radius here is {share:g} of that",
            "(vnnlib-version <2.0>)",
            f"(declare-network N (declare-input X float32 {[1, *x.shape[1:]]}) (declare-output Y float32 [1, {classes}]))",
        ]
        for place, value in zip(np.ndindex(1, *x.shape[1:]), x[row].flatten().tolist(), strict=True):
            low, high = max(value - share * eps, 0), min(value + share * eps, 1)
            lines += [f"(assert (>= X{list(place)} {low:.8f}))", f"(assert (<= X{list(place)} {high:.8f}))"]
        broken = " ".join(f"(and (>= Y[0, {k}] Y[0, {label}]))" for k in range(classes) if k != label)
        name = f"image-{row:05}.vnnlib"
        files[name] = "\n".join([*lines, f"(assert (or {broken}))", ""]).encode()
        instances.append(f"network.onnx,{name},300\n")
    for name, content in {**files, "instances.csv": "".join(instances).encode()}.items():
        write_atomically(out / name, content)
    return len(instances)


def folder(source: Pretrained, model: nn.Module, images: Tensor, out: Path) -> list[Path]:
    """The run's files that say what it is, model.safetensors or model.onnx beside them, and the card. out may be the run's own
    folder.

    :raises UserError: if a network is there already.
    """
    from reports.model_card import card

    run, halves = source.path.resolve().parent, {}
    for key, value in model.state_dict().items():
        half = value.half() if value.is_floating_point() else value
        halves[key] = half if torch.equal(half.to(value.dtype), value) else value
    out.mkdir(parents=True, exist_ok=True)
    written = write(safetensors(source, model, images, halves), model, images, out / "model")
    if source.config.network != "lenet5":
        written += write(onnx(source, model, images), model, images, out / "model")
    write_atomically(out / "README.md", card(run, out).encode())  # which may draw margins.png
    kept = ("config.json", "metrics.jsonl", source.path.name, "margins.png")
    for path in (*filter(Path.exists, (run / name for name in kept)), *run.glob("eval_*.json")):
        if run != out.resolve():
            shutil.copy2(path, out)
    return [*written, out / "README.md"]


FORMATS = {"safetensors": safetensors, "robustbench": robustbench, "onnx": onnx}


def write(written: Written, model: nn.Module, images: Tensor, out: Path) -> list[Path]:
    """The files at `out`, with or without an ending, compared with the network on one image and on all.

    :raises UserError: if one is there already, or the network that is read back is another function.
    """
    endings = (".safetensors", ".pt", ".json", ".onnx")
    stem = out.stem if out.suffix in endings else out.name
    contents, read = written
    files = {out.with_name(stem + ending): content for ending, content in contents.items()}
    if there := [file for file in files if file.exists()]:
        raise UserError(f"--out {there[0]}: there already: remove it, or name another")
    for file, content in files.items():
        write_atomically(file, content)
    first = next(iter(files))
    logits = read(first)
    for x in (images[:1], images):
        with torch.no_grad():
            difference = float((model(x) - logits(x)).abs().max())
        if not difference <= TOLERANCE:
            for file in files:
                file.unlink()
            raise UserError(f"{first}: read back, its logits are {difference:.2g} away: removed; please report this")
    return list(files)


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Export. Returns the exit status."""
    parser = Parser(description="Write a trained network in a format of the field.", allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="a committed run by name, or a run folder or checkpoint by its path")
    parser.add_argument("--to", required=True, choices=[*FORMATS, "folder", "vnnlib"], help="format")
    parser.add_argument("--out", metavar="PATH", help="file (default: runs/<run> and the ending)")
    parser.add_argument("--size", type=whole, help="side of the images (default: what the weights say, else 32)")
    parser.add_argument("--images", type=whole, default=10, help="vnnlib: so many of the first test images")
    parser.add_argument("--share", type=number, default=0.9, help="vnnlib: of each image's margin, as AN-PGD finds it")
    parser.add_argument("--data_root", help="vnnlib: folder of the data set (default: the run's)")
    given = parser.parse(argv)
    require_positive(SimpleNamespace(**given), ["images", "share"])
    source, size = load_pretrained(given["run"]), given["size"]
    model = built(source, source.weights, size)
    channels, height, width, _ = shape_of(source.weights)
    if source.config.image_shape:
        channels, height, width = source.config.image_shape
    images = torch.rand(7, channels, size or height, size or width, generator=generator(0))
    out = Path(given["out"] or Path("runs") / source.path.resolve().parent.name)
    out.parent.mkdir(parents=True, exist_ok=True)
    if given["to"] == "vnnlib":
        count = properties(source, model, out, given["images"], given["share"], given["data_root"])
        print(f"{out}: network.onnx, instances.csv and {count} properties")
    elif given["to"] == "folder":
        print(*folder(source, model, images, out), sep="\n")
    else:
        print(*write(FORMATS[given["to"]](source, model, images), model, images, out), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
