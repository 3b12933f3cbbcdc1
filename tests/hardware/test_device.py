"""What `--device` means on machines with other GPUs than this one, by a stub of `torch.cuda` that refuses what torch refuses."""

import shlex
from pathlib import Path

import pytest
import torch

import utils
from command_lines import fails
from errors import UserError
from hardware.precision import remark
from train import main
from utils import use_device


class Gpus:
    """`torch.cuda` of a machine with `count` GPUs, whose current one is `current`; with torch's own errors."""

    def __init__(self, count, current=0, broken=None):
        self.count, self.current, self.broken, self.chosen = count, current, broken, []

    def is_available(self):
        return self.count > 0

    def current_device(self):
        if self.broken is not None:
            raise self.broken
        if not self.count:
            raise AssertionError("Torch not compiled with CUDA enabled")
        return self.current

    def set_device(self, device):
        index = torch.cuda._utils._get_device_index(device)  # torch's own: refuses a device without a number
        if index >= self.count:
            raise torch.AcceleratorError("CUDA error: invalid device ordinal\nmore")
        self.chosen.append(index)
        self.current = index


@pytest.fixture
def gpus(monkeypatch):
    def install(*given, **more):
        stub = Gpus(*given, **more)
        for name in ("is_available", "current_device", "set_device"):
            monkeypatch.setattr(torch.cuda, name, getattr(stub, name))
        made = torch.empty

        def empty(*sizes, device=None, **others):
            device = torch.device(device or "cpu")
            if device.type == "cuda":
                assert (device.index, stub.current) == (stub.chosen[-1],) * 2, "made before the device was chosen"
                device = "meta"
            return made(*sizes, device=device, **others)

        monkeypatch.setattr(utils.torch, "empty", empty)
        return stub

    return install


@pytest.mark.parametrize(
    ("name", "current", "expected"),
    [
        ("auto", 0, "cuda:0"),
        ("cuda", 0, "cuda:0"),
        ("cuda", 3, "cuda:3"),
        ("auto", 3, "cuda:3"),
        ("cuda:0", 3, "cuda:0"),
        ("cuda:7", 0, "cuda:7"),
        ("cpu", 0, "cpu"),
    ],
)
def test_every_way_of_naming_a_gpu_gives_one_with_its_number(gpus, name, current, expected):
    stub = gpus(8, current)
    assert use_device(name, deterministic=False) == torch.device(expected)
    assert stub.chosen == ([] if expected == "cpu" else [torch.device(expected).index])


def test_auto_without_a_gpu_is_the_cpu(gpus):
    gpus(0)
    assert use_device("auto", deterministic=False) == torch.device("cpu")


@pytest.mark.parametrize(
    "broken",
    [
        None,
        RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nmore"),
        torch.cuda.DeferredCudaCallError("CUDA call failed lazily\nmore"),
        torch.AcceleratorError("CUDA error: all CUDA-capable devices are busy or unavailable\nmore"),
        ValueError("Expected a torch.device with a specified index"),
        OSError("libcuda.so.1: cannot open shared object file"),
    ],
)
@pytest.mark.parametrize("name", ["cuda", "cuda:7"])
def test_what_torch_raises_is_one_line_for_the_user(gpus, tmp_path, capsys, name, broken):
    stub = gpus(1 if name == "cuda" and broken else 0 if broken is None else 1, broken=broken)
    fails(
        capsys,
        main,
        [
            *shlex.split("--dataset digits --norm Linf --hinge_maxeps 0.3"),
            "--device",
            name,
            "--savepath",
            tmp_path / "run",
        ],
        f"--device {name}",
        "choose cpu",
    )
    assert not stub.chosen and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name", ["", "cuda:", "cuda:-1", "cuda:1000000", "cuda:300", "gpu", "meta", "mps", "cpu:0:1", "CUDA"]
)
def test_what_is_no_device_is_refused(gpus, name):
    gpus(8)
    with pytest.raises(UserError, match="cannot be used"):
        use_device(name, deterministic=False)


def test_slow_arithmetic_is_said(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert remark(cpu, "fp32") is None and remark(cuda, "bf16") is None and "CUDA's" in remark(cpu, "tf32")
    for flags, slow in (("fpu avx2", True), ("fpu avx512_bf16", False), ("asimd bf16", False)):
        monkeypatch.setattr(Path, "read_text", lambda self, flags=flags: f"flags\t: {flags}\n")
        assert [remark(cpu, precision) is not None for precision in ("bf16", "bf16_all")] == [slow, slow]
