"""Small things used in several packages: module modes, per-row arithmetic, seeded draws, atomic writes, the device."""

from __future__ import annotations

import errno
import glob
import os
import platform
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from errors import UserError

# The streams of random draws. Each draw's generator is keyed by (seed, stream, step or epoch, …).
ORDER, AUGMENT, START, CHECK, EVALUATE, SPLIT, GLOBAL, SANITY, ODI = range(9)


def write_atomically(path: Path, content: bytes, before: Callable[[], None] = lambda: None) -> None:
    """Replace `path` by `content` at once: at any moment the old or the new file is there, whole.

    before: called when the new file is written, before it takes the old one's place.

    :raises OSError: if the folder is full or cannot be written; `path` is then as it was.
    """
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            sync(file.fileno())
        before()
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk's names none
        raise
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        sync(folder)
    finally:
        os.close(folder)


def temporary_name(path: Path) -> Path:
    """A name beside `path` that no other process uses; files of such names that dead processes left here are removed."""
    start = f".{path.name}.{platform.node()}-"
    for stray in path.parent.glob(glob.escape(start) + "*.tmp"):
        number = stray.name.removeprefix(start).removesuffix(".tmp")
        try:
            os.kill(int(number), 0)
        except ProcessLookupError:
            stray.unlink(missing_ok=True)
        except (ValueError, OSError):  # another's, or not of ours
            pass
    return path.with_name(f"{start}{os.getpid()}.tmp")


def sync(descriptor: int) -> None:
    """Until it is on the disk, where the file system can say so: some of networks and of user space cannot."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


@contextmanager
def set_to(value: bool, name: str, holders: Iterable[Any]) -> Iterator[None]:
    """The attribute `name` of each holder is `value` inside; each gets its own back."""
    before = [(holder, getattr(holder, name)) for holder in holders]
    for holder, _ in before:
        setattr(holder, name, value)
    try:
        yield
    finally:
        for holder, own in before:
            setattr(holder, name, own)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every module gets its own mode back."""
    with set_to(False, "training", model.modules()):
        model.eval()  # in which a network of somebody's own may do more
        yield


def frozen(model: nn.Module) -> AbstractContextManager[None]:
    """No parameter asks for a gradient inside; each gets its own flag back."""
    return set_to(False, "requires_grad", model.parameters())


@contextmanager
def untouched(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The network frozen in eval mode inside; it and torch's generators are as before after."""
    with eval_mode(model), frozen(model), torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def radius_text(eps: float) -> str:
    """A radius as people write it: 0.3, or 8/255 where that says it shorter."""
    plain, whole = f"{eps:.5g}", 255 * eps
    return f"{round(whole)}/255" if abs(float(plain) - eps) > 1e-9 and abs(whole - round(whole)) < 1e-6 else plain


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, …, 1) with as many dimensions as `like`."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


def row_norms(x: Tensor) -> Tensor:
    """(B, ...) -> (B,): Euclidean norm of each row."""
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norms


def mixed_seed(*key: int) -> int:
    """One 63-bit seed from several whole numbers >= 0, by numpy's fixed SeedSequence arithmetic."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def seed_global_draws(seed: int) -> None:
    """Torch's, NumPy's and Python's own generators, from which a custom network may draw: dropout, say."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def generator(*key: int) -> torch.Generator:
    """A CPU generator that is a function of `key` alone, so the same numbers come on every device."""
    return torch.Generator().manual_seed(mixed_seed(*key))


def row_noise(index: Tensor, shape: Sequence[int], *key: int) -> Tensor:
    """(B,) -> (B, *shape) on the CPU: uniform on [0, 1), each row a function of (`key`, its index) alone."""
    return torch.stack([torch.rand(*shape, generator=generator(*key, int(i))) for i in index.cpu()])


def spread_rows(count: int, most: int) -> Tensor:
    """`most` of `count` rows, or all, from the first to the last: a folder's pictures are in the order of their classes."""
    return torch.linspace(0, count - 1, min(most, count)).long()


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on `device`; a GPU is not waited for."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def batchnorms(model: nn.Module) -> list[_BatchNorm]:
    """Every BatchNorm of torch's in it, of any rank."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def has_batchnorm(model: nn.Module) -> bool:
    """Whether a forward pass in train mode updates running statistics."""
    return any(
        getattr(module, "running_mean", None) is not None and getattr(module, "track_running_stats", True)
        for module in model.modules()
    )


def use_device(name: str, deterministic: bool) -> torch.device:
    """The device a `--device` flag means, a GPU always with its number; sets up deterministic kernels if asked for.

    :raises UserError: if there is no such device.
    """
    try:
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        if not re.fullmatch(r"(cpu|cuda)(:\d{1,2})?", name):
            raise ValueError("neither cpu nor cuda")
        device = torch.device(name)
        if device.type == "cuda":
            device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
            torch.cuda.set_device(device)
        torch.empty(0, device=device)
    except Exception as error:  # torch without CUDA, an old driver, a GPU that is taken: each raises its own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"--device {name}: cannot be used ({reason}): leave it out, or choose cpu") from None
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32; torch's default is TF32 in convolutions
    torch.backends.cudnn.benchmark = False  # switched on for fixed shapes alone, see hardware/layout.py
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return device
