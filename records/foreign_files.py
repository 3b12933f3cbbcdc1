"""Checkpoints as other programs write them: where the weights are in one, and why one is refused."""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from errors import some

# Beside weights, most programs keep accuracies as NumPy's numbers, and flags as argparse's: neither runs anything.
SAFE: list[Any] = [np.dtype, np.float64(0).__reduce__()[0], Namespace]  # the second makes a scalar
SAFE += [type(np.dtype(name)) for name in ("float32", "float64", "int32", "int64", "bool")]
WEIGHTS = ("model", "state_dict", "model_state_dict", "net", "network", "weights", "params")
_SPLITS, _ACCURACIES = "best|clean|test|val|valid|nat|natural|standard|std|eval", "acc|accuracy|acc1|top1|prec1"
ACCURACY = re.compile(f"({_SPLITS})?_?({_ACCURACIES})", re.I)


def weights_in(content: Mapping[str, Any], file: str) -> dict[str, Tensor]:
    """The state dict, bare or under the name that a program gives it.

    :raises ValueError: if there is none, naming the keys that are there.
    """
    for weights in (*(content[name] for name in WEIGHTS if name in content), content):
        if _is_state_dict(weights):  # less what torch's AveragedModel counts
            return {key: tensor for key, tensor in weights.items() if key != "n_averaged"}
    bare = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    beside = [value for value in content.values() if not isinstance(value, Tensor)]
    if _is_state_dict(bare) and all(isinstance(value, int | float | str | np.number | None) for value in beside):
        return bare
    if whole := [key for key in content if isinstance(key, str) and _is_state_dict(content[key])]:
        raise ValueError(
            f"no weights under {', '.join(WEIGHTS[:4])}, but {_named(whole)} could be: keep one of them, with "
            f'torch.save(torch.load({file!r})[{whole[0]!r}], "weights.pt")'
        )
    raise ValueError(f"no weights in it, there is {_named(content)}: name a model_best.pt, last.pt or a state dict")


def alike_in(content: Mapping[str, Any], weights: Mapping[str, Tensor]) -> list[str]:
    """Where state dicts of these shapes are, such as an average of the weights; none if there is one alone."""
    shapes = [tensor.shape for tensor in weights.values()]
    of_shapes = [
        str(name)
        for name, other in content.items()
        if _is_state_dict(other) and [tensor.shape for key, tensor in other.items() if key != "n_averaged"] == shapes
    ]
    return of_shapes if len(of_shapes) > 1 else []


def from_safetensors(raw: bytes) -> dict[str, Any] | None:
    """What a safetensors file holds: the state dict as `model`, and from one of ours the `config`. None for other files.

    :raises ValueError: if it is damaged, or the package that reads it is not installed.
    """
    length = int.from_bytes(raw[:8], "little")
    if raw[8:9] != b"{" or length > len(raw) - 8:
        return None
    try:
        import safetensors.torch
    except ImportError:
        raise ValueError("safetensors files need their package: pip install safetensors") from None
    try:
        described = json.loads(raw[8 : 8 + length]).get("__metadata__", {})
        config = None
        with suppress(ValueError):  # of another program, whose config is what it likes
            config = json.loads(described.get("config", "null"))
        return {"model": safetensors.torch.load(raw), "config": config}
    except (ValueError, safetensors.SafetensorError) as error:
        raise ValueError(f"damaged safetensors file ({error}): name another file") from None


def _is_state_dict(value: object) -> bool:
    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(key, str) and isinstance(item, Tensor) for key, item in value.items())


def _named(keys: Any) -> str:
    return some([str(key)[:40] for key in keys]) or "nothing"


def accuracy_in(content: Mapping[str, Any]) -> float | None:
    """The clean accuracy that a file itself names, as a fraction: the largest, if there are several; of training none. Ours name
    that of their check."""
    checks = content.get("metrics")
    for split in ("test", "val"):
        own = checks.get(split) if isinstance(checks, Mapping) else None
        said = own.get("clean_acc") if isinstance(own, Mapping) else None
        if isinstance(said, float) and 0 < said <= 1:  # another program's may be anything
            return said
    values = [
        float(value)
        for key, value in content.items()
        if isinstance(key, str) and ACCURACY.fullmatch(key) and isinstance(value, int | float | np.number)
    ]
    fractions = [value / 100 if value > 1 else value for value in values if 0 < value <= 100]
    return max(fractions, default=None)


def why_refused(raw: bytes, file: str, error: Exception) -> str:
    """Why `torch.load(weights_only=True)` gave this error, as the end of a sentence, with the remedy."""
    trusted, load = 'if you trust it, torch.save({}, "weights.pt")', f"torch.load({file!r}, weights_only=False)"
    if not raw.startswith((b"PK", b"\x80")):  # a zip file, or a pickle of before
        return "truncated, damaged, or another kind of file): name another file"
    with suppress(Exception), zipfile.ZipFile(io.BytesIO(raw)) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            return "it is TorchScript): " + trusted.format(f"torch.jit.load({file!r}).state_dict()")
    top = _outline(raw)
    if isinstance(top, _Stub):
        whole = f"it holds a whole network, a {type(top).__name__}, which asks to run code"
        return f"{whole}): " + trusted.format(f"{load}.state_dict()")
    if isinstance(top, Mapping) and ("GLOBAL" in str(error) or "Unsupported" in str(error)):
        names: list[str] = []
        with suppress(Exception), torch.serialization.safe_globals(SAFE):  # of old or damaged files
            names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(raw)))
        asks = f"it asks to run code, which is refused{': ' if names else ''}{_named(names) if names else ''}"
        key = next((key for key in WEIGHTS if isinstance(top.get(key), Mapping | _Stub)), None)
        save = load if key is None else f"{load}[{key!r}]" + (".state_dict()" if isinstance(top[key], _Stub) else "")
        if any("numpy" in said for said in (*names, str(error))) and key is None:  # a state dict of arrays
            save = f"{{key: torch.as_tensor(value) for key, value in {save}.items()}}"
        return f"{asks}; there is {_named(top)}): " + trusted.format(save)
    return "truncated, damaged, or another kind of file): name another file"


class _Stub:
    """Stands for any class or function that a pickle names: takes what it is given, and does nothing."""

    def __init__(self, *args: object, **more: object) -> None: ...
    def __setstate__(self, state: object) -> None: ...
    def __setitem__(self, key: object, value: object) -> None: ...
    def append(self, value: object) -> None: ...
    def extend(self, values: object) -> None: ...


class _Outline(pickle.Unpickler):
    """Reads the shape of a pickle and runs nothing of it: tensors, classes and functions become stubs."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        return type(f"{module}.{name}", (_Stub,), {})

    def persistent_load(self, pid: Any) -> object:
        return pid[1] if pid[0] == "module" else _Stub()  # the class of a whole network, as torch before 1.6 wrote it


def _outline(raw: bytes) -> object:
    """What the pickle in a file holds, with stubs in it; None if it cannot be read."""
    try:
        data = raw
        if raw.startswith(b"PK"):
            with zipfile.ZipFile(io.BytesIO(raw)) as archive:
                data = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
        stream = io.BytesIO(data)
        top = _Outline(stream).load()
        while isinstance(top, int) or (isinstance(top, Mapping) and "protocol_version" in top):  # torch's before 1.6
            top = _Outline(stream).load()
    except Exception:  # a damaged file fails anywhere
        return None
    return top
