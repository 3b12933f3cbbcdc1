"""Write a trained network in a format of the field, read it back and compare.

python scripts/export.py RUN --to safetensors | robustbench | onnx [--out PATH]

RUN is a committed run by name, or the path of a run folder. safetensors: the weights, with the run's config in the metadata.
robustbench: a state dict for RobustBench's `Ding2020MMANet`, and its model_info JSON, of WRN-28-4 on colour images alone.
onnx: the network itself, for batches of any size.
"""

from __future__ import annotations

import importlib
import io
import json
import math
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from errors import UserError, exits_on_user_error
from evaluations.results import read_file
from evaluations.rows import is_standard, quoted
from flags import Parser, whole
from networks.build import build_model
from networks.names import is_built_in
from networks.shapes import shape_of
from records.checkpoint import load_weights
from records.pretrained import Pretrained, load_pretrained
from utils import generator, write_atomically

TOLERANCE = 1e-5  # of logits, between the network and what is read back
ENDINGS = (".safetensors", ".pt", ".json", ".onnx")
EXTRAS = "requirements/export.txt"


class Export(NamedTuple):
    """A network, what it is compared on, and where it goes."""

    source: Pretrained
    model: nn.Module  # in eval mode
    images: Tensor  # (B, C, H, W)
    out: Path  # with or without ending

    def file(self, ending: str) -> Path:
        """`out` with this ending.

        :raises UserError: if it is there.
        """
        stem = self.out.stem if self.out.suffix in ENDINGS else self.out.name
        file = self.out.with_name(stem + ending)
        if file.exists():
            raise UserError(f"--out {file}: there already: remove it, or name another")
        return file

    def compare(self, logits: Tensor, file: Path) -> None:
        """:raises UserError: if what was read back is another function than the network."""
        with torch.no_grad():
            difference = float((self.model(self.images) - logits).abs().max())
        if not difference <= TOLERANCE:
            file.unlink()
            raise UserError(f"{file}: read back, its logits are {difference:.2g} away: removed; please report this")

    def compare_weights(self, weights: dict[str, Tensor], file: Path) -> None:
        """The same for a state dict with our keys."""
        model = built(self.source, self.images.shape[-1])
        load_weights(model, weights, file)
        with torch.no_grad():
            self.compare(model.eval()(self.images), file)


def built(source: Pretrained, size: int | None) -> nn.Module:
    """The network at its initialisation. size: the side of its images, None: read off its weights.

    :raises UserError: if it is not a built-in one.
    """
    if not is_built_in(source.config.network):
        raise UserError(
            f"network {source.config.network}: is code of yours, which is not run here: make it in a script of yours, fill it "
            'with torch.hub.load(…, "mma", name=RUN, network=…) and save it from there'
        )
    channels, height, width, classes = shape_of(source.weights)
    return build_model(
        source.config.network, channels, size or height, size or width, classes, source.config.activation
    )


def to_safetensors(export: Export) -> list[Path]:
    """The weights; as metadata the config in JSON, and the checkpoint's sha256."""
    safetensors = extra("safetensors.torch")
    file = export.file(".safetensors")
    metadata = {"format": "pt", "config": json.dumps(export.source.config.to_dict()), "sha256": export.source.sha256}
    state = {key: tensor.contiguous() for key, tensor in export.model.state_dict().items()}
    write_atomically(file, safetensors.save(state, metadata))
    export.compare_weights(safetensors.load_file(file), file)
    return [file]


def to_robustbench_format(export: Export) -> list[Path]:
    """The state dict, and the model_info JSON beside it."""
    config, (channels, _, _, classes) = export.source.config, shape_of(export.source.weights)
    if (config.network, config.activation, channels, classes) != ("wrn28_4", "relu", 3, 10):
        raise UserError(
            f"--to robustbench: {config.network} with {config.activation} on {channels} channels and {classes} classes: RobustBench's class is a "
            "WRN-28-4 on colour images and 10 classes: choose safetensors or onnx"
        )
    file, info = export.file(".pt"), export.file(".json")
    buffer = io.BytesIO()
    torch.save(to_robustbench(export.model.state_dict()), buffer)
    write_atomically(file, buffer.getvalue())
    export.compare_weights(from_robustbench(torch.load(file, weights_only=True)), file)
    write_atomically(info, (json.dumps(model_info(export.source), indent=2) + "\n").encode())
    return [file, info]


ROBUSTBENCH_KEYS = (("convgroup", "block"), ("conv_shortcut", "convShortcut"))  # ours, theirs; and ours begin with `1.`
ROBUSTBENCH_RADIUS = {"Linf": ("8/255", 8 / 255), "L2": ("0.5", 0.5)}


def to_robustbench(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A WRN-28-4's state dict with RobustBench's keys."""
    renamed = {re.sub(r"^1\.", "", key): tensor for key, tensor in state.items()}
    for own, theirs in ROBUSTBENCH_KEYS:
        renamed = {key.replace(own, theirs): tensor for key, tensor in renamed.items()}
    return renamed


def from_robustbench(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The way back."""
    for own, theirs in ROBUSTBENCH_KEYS:
        state = {key.replace(theirs, own): tensor for key, tensor in state.items()}
    return {f"1.{key}": tensor for key, tensor in state.items()}


def model_info(source: Pretrained) -> dict[str, object]:
    """RobustBench's description, as far as this very checkpoint was evaluated at RobustBench's radius.

    Paper, authors and venue are left to be filled in by hand.
    """
    config = source.config
    text, radius = ROBUSTBENCH_RADIUS[config.norm]
    info: dict[str, object] = {
        "name": source.path.resolve().parent.name,
        "number_forward_passes": 1,
        "dataset": config.dataset,
        "architecture": "WideResNet-28-4",
        "eps": text,
    }
    images: dict[str, int] = {}  # field -> of how many test images its figure is
    for attack, field in (("pgd", "reported"), ("autoattack", "autoattack_acc")):
        contents = read_file(source.path.parent / f"eval_{attack}_{config.norm}.json")
        rows = [row for one in contents if one["model_sha256"] == source.sha256 for row in quoted(one["results"])]
        for row in rows:
            if is_standard(row) and math.isclose(row["eps"], radius, abs_tol=1e-6):
                images[field] = row["n"]
                info |= {field: percent(row["robust_acc"])}
                if row["n"] == max(images.values()):
                    info["clean_acc"] = percent(row["clean_acc"])
    if images:
        info["footnote"] = "; ".join(f"{field}: {n} test images" for field, n in images.items())
    return info


def percent(fraction: float) -> str:
    """As RobustBench writes it."""
    return f"{100 * fraction:.2f}"


def to_onnx(export: Export) -> list[Path]:
    """The network, input `images`, output `logits`, the first dimension of both of any size."""
    extra("onnx"), extra("onnxscript")
    runtime = extra("onnxruntime")
    file = export.file(".onnx")
    with warnings.catch_warnings(action="ignore"):  # of the exporter's own insides
        program = torch.onnx.export(
            export.model,
            (export.images,),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # it is with dynamo
    buffer = io.BytesIO()
    program.save(buffer)
    write_atomically(file, buffer.getvalue())
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for count in (1, len(export.images)):
        batch = export._replace(images=export.images[:count])
        (logits,) = session.run(["logits"], {"images": batch.images.numpy()})
        batch.compare(torch.from_numpy(logits), file)
    return [file]


FORMATS: dict[str, Callable[[Export], list[Path]]] = {
    "safetensors": to_safetensors,
    "robustbench": to_robustbench_format,
    "onnx": to_onnx,
}


def extra(name: str) -> Any:
    """A package that only exports need.

    :raises UserError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"package {name.partition('.')[0]}: missing ({error}): pip install -r {ROOT / EXTRAS}"
        ) from None


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Export. Returns the exit status."""
    parser = Parser(description="Write a trained network in a format of the field.", allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="a committed run by name, or a run folder or checkpoint by its path")
    parser.add_argument("--to", required=True, choices=list(FORMATS), help="format")
    parser.add_argument("--out", metavar="PATH", help="file (default: runs/<run> and the ending)")
    parser.add_argument("--size", type=whole, help="side of the images (default: what the weights say, else 32)")
    given = parser.parse(argv)
    source = load_pretrained(given["run"])
    model = built(source, given.get("size"))
    load_weights(model, source.weights, source.path)
    channels, height, width, _ = shape_of(source.weights)
    size = given.get("size")
    images = torch.rand(7, channels, size or height, size or width, generator=generator(0))
    out = Path(given.get("out") or Path("runs") / source.path.resolve().parent.name)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        files = FORMATS[given["to"]](Export(source, model.eval(), images, out))
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror}): choose another place") from None
    print("\n".join(str(file) for file in files))
    return 0


if __name__ == "__main__":
    sys.exit(main())
