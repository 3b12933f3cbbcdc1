"""Checkpoints: written atomically with a checksum inside, read as data and never as code.

A checkpoint is a dict of tensors and plain Python values. Its key `checksum` is a digest of everything else in it,
because torch does not notice a flipped byte in a tensor.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import struct
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from errors import UserError
from records.foreign_files import SAFE, WEIGHTS, accuracy_in, alike_in, from_safetensors, weights_in, why_refused
from utils import temporary_name, write_atomically

CHECKSUM = "checksum"
ANOTHER = "name another file"
# Of a run's state, and what each is; see `trainer.Trainer.state`.
STATE_KEYS: dict[str, type] = {"eps": Tensor, "best": list, "sums": list, "model": dict, "optimizer": dict}
STATE_KEYS |= {"step": int, "checked_step": int, "epoch": int, "config": dict}


def digest(value: object) -> str:
    """SHA-256 of nested dicts, lists and tuples of tensors and plain values; independent of device and file format."""
    sha = hashlib.sha256()
    _feed(sha, value)
    return sha.hexdigest()


def _feed(sha: hashlib._Hash, value: object) -> None:
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        sha.update(f"tensor {value.dtype} {tuple(value.shape)} ".encode())
        if value.numel():
            sha.update(value.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, dict):
        sha.update(f"dict {len(value)} ".encode())
        for key, item in value.items():
            _feed(sha, key)
            _feed(sha, item)
    elif isinstance(value, list | tuple):
        sha.update(f"sequence {len(value)} ".encode())
        for item in value:
            _feed(sha, item)
    elif isinstance(value, float):
        sha.update(b"float " + struct.pack("<d", value))
    elif value is None or isinstance(value, bool | int | str):
        sha.update(f"{type(value).__name__} {value!r} ".encode())
    else:
        raise TypeError(f"{type(value).__name__} in a checkpoint: tensors and plain Python values only")


def save(path: Path, content: dict[str, Any], previous: Path | None = None) -> None:
    """Write `content` with its checksum to `path`; what was there is kept as `previous`, if given.

    :raises OSError: as `write_atomically`.
    """
    buffer = io.BytesIO()  # torch reports a full disk as RuntimeError; a plain write reports it as OSError
    torch.save({**content, CHECKSUM: digest(content)}, buffer)

    def keep_the_old() -> None:
        if previous is None or not path.exists():
            return
        # A second name first, then one replace each: `path` never goes missing.
        link = temporary_name(previous)
        link.unlink(missing_ok=True)
        try:
            os.link(path, link)
        except OSError:  # file systems without hard links
            shutil.copy2(path, link)
        link.replace(previous)

    write_atomically(path, buffer.getvalue(), keep_the_old)


def load(path: Path, needed: Mapping[str, type] | None = None) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU, without its checksum.

    needed: keys that it must have, with the type of each; a file with such keys is ours and must have a checksum too.

    :raises UserError: if there is no such file, or it is damaged, not a checkpoint, lacks a key of `needed`, or would
        run code.
    """
    return _parse(_read(path), path, needed)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"checkpoint {path}: cannot be read ({reason}): {ANOTHER}") from None


def _parse(raw: bytes, path: Path, needed: Mapping[str, type] | None = None) -> dict[str, Any]:
    try:
        # Warnings are of kinds of files and tensors that are refused anyway.
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(SAFE):
            content = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails anywhere in torch's reader
        raise UserError(
            f"checkpoint {path}: not tensors and plain values ({why_refused(raw, str(path), error)}"
        ) from None
    if not isinstance(content, dict):
        parts = list(content) if isinstance(content, list | tuple) else []
        place, cure = next((at for at, part in enumerate(parts) if isinstance(part, dict)), None), ANOTHER
        if place is not None:
            cure = f'keep its weights, with torch.save(torch.load({str(path)!r})[{place}], "weights.pt")'
        raise UserError(f"checkpoint {path}: holds a {type(content).__name__}, not a dict: {cure}")
    if CHECKSUM in content:
        expected = content.pop(CHECKSUM)
        try:
            intact = digest(content) == expected
        except Exception:  # what is not ours may hold anything: sparse tensors, a list that holds itself
            intact = False
        if not intact:
            raise UserError(f"checkpoint {path}: damaged, its checksum does not fit its content: {ANOTHER}")
    elif needed:
        raise UserError(f"checkpoint {path}: not written by this program, it has no checksum: {ANOTHER}")
    for key, kind in (needed or {}).items():
        if not isinstance(content.get(key), kind):
            found = f"{key!r} is a {type(content[key]).__name__}" if key in content else f"it has no {key!r}"
            raise UserError(f"checkpoint {path}: not what is needed here, {found}: {ANOTHER}")
    return content


class ModelFile(NamedTuple):
    """The weights in a checkpoint, ours or another program's, and what comes with them."""

    path: Path
    sha256: str  # of the file
    weights: dict[str, Tensor]  # state dict
    config: dict[str, Any] | None  # of the training, in our checkpoints
    accuracy: float | None = None  # on clean images, as the file itself says it, a fraction
    notes: tuple[str, ...] = ()  # what the user should be told of it


def load_model_file(name: str) -> ModelFile:
    """A checkpoint file, or a run folder's model_best.pt. Understands ours, the reference's, safetensors, and a state dict,
    bare or under a usual name.

    :raises UserError: as `load`, and if no weights are in it.
    """
    path = Path(name)
    with suppress(OSError):  # a name that is too long; said when it is read
        if path.is_dir():
            settings, path = path / "config.json", path / "model_best.pt"
            how = f"python train.py --config {settings} --savepath runs/{path.parent.resolve().name}"
            if not path.exists():
                make = f", only how it was trained: make the network with {how}, or" if settings.exists() else ":"
                raise UserError(f"{name}: holds no model_best.pt{make} name a checkpoint file")
    raw = _read(path)
    try:
        content = from_safetensors(raw) or _parse(raw, path)
        weights = weights_in(content, str(path))
    except ValueError as error:
        raise UserError(f"checkpoint {path}: {error}") from None
    config = content.get("config")
    ours = isinstance(config, dict) and {"dataset", "norm", "network", "attack_mineps"} <= config.keys()
    notes: tuple[str, ...] = ()
    if alike := alike_in(content, weights):
        taken = next(name for name in (*WEIGHTS, *alike) if name in alike)
        notes = (
            f"--model: {path} holds several networks, {', '.join(alike)}: {taken} is taken; save another one alone",
        )
    sha256 = hashlib.sha256(raw).hexdigest()
    return ModelFile(path, sha256, weights, config if ours else None, accuracy_in(content), notes)


def load_weights(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """:raises UserError: naming the first tensor that is missing, too many, of another shape or kind, or not finite."""
    own = model.state_dict()
    for key in [*weights, *own]:
        there, here = weights.get(key), own.get(key)
        # Dense, with numbers behind it.
        if there is not None and (there.layout != torch.strided or there.device.type != "cpu" or there.is_quantized):
            raise UserError(f"checkpoint {path}: {key} is not a plain tensor: {ANOTHER}")
        if there is None or here is None or _described(there) != _described(here):
            raise UserError(
                f"checkpoint {path}: of another network: {key} is {_described(there)} there, {_described(here)} in the "
                "network asked for: name the right --network, --dataset or --data_root"
            )
        if not torch.isfinite(there.to(here.dtype)).all():
            raise UserError(
                f"checkpoint {path}: {key} is not finite (NaN or infinite), the training went wrong: name an "
                "earlier checkpoint"
            )
    model.load_state_dict(weights)


def _described(value: Tensor | None) -> str:
    """Shape and kind, whatever the precision."""
    if value is None:
        return "absent"
    kind = "" if value.is_floating_point() else ", complex" if value.is_complex() else ", whole"
    return ("x".join(map(str, value.shape)) or "a number") + kind
