"""Every fast path against the plain one: masked rows, convolutions, bfloat16; the benchmark's baseline against ours."""

import copy
from pathlib import Path

import pytest
import torch

from benchmarks.reference_style import ReferenceStyle
from evaluations.repeated_pgd import from_noise, repeated_pgd
from hardware.fast_pgd import FastPgd
from hardware.precision import BFloat16Twin, remark, tf32
from losses import cross_entropy, cw_loss, logit_margin
from networks.build import build_model
from networks.lenet import ImageConv2d, LeNet5Madry
from pgd import pgd
from tiny_runs import batch_for, network, rand, settings, step, tiny_trainer


@pytest.mark.parametrize("wrong_every", [0, 1, 3])
@pytest.mark.parametrize("odi_steps", [0, 3])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_every_row_attacked_and_masked_equals_the_right_rows_alone(norm, odi_steps, wrong_every):
    model, config = network(batchnorm=False, sharpness=60), settings(norm, 1 / 3, odi_steps=odi_steps)
    batch = batch_for(model, wrong_every=wrong_every)
    start, noise = torch.full((12,), 0.02, dtype=torch.float64), rand(*batch.x.shape, seed=2)
    odi_weights = (2 * rand(12, 4, seed=3) - 1) * (torch.arange(12) % 4 > 0)[:, None] if odi_steps else None
    results = []
    for every_row in (False, True):
        model.zero_grad()
        result = step(model, batch.x, batch.y, start, noise, config, every_row=every_row, odi_weights=odi_weights)
        results.append([*result[:6], *(p.grad.clone() for p in model.parameters())])
    for plain, masked in zip(*results, strict=True):
        torch.testing.assert_close(masked, plain, rtol=1e-12, atol=1e-14)
    assert results[0][4].count_nonzero() == {0: 12, 1: 0, 3: 8}[wrong_every]


@pytest.mark.parametrize(("channels", "size", "padding"), [(1, 5, 2), (3, 3, 1), (2, 5, 0), (1, 4, 1)])
def test_image_conv_is_a_convolution(channels, size, padding):
    """Output and input gradient in every mode, the parameters' gradients where they are asked for."""
    torch.manual_seed(0)
    fast = ImageConv2d(channels, 6, size, padding=padding).double()
    plain = torch.nn.Conv2d(channels, 6, size, padding=padding).double()
    plain.load_state_dict(fast.state_dict())
    for height, width in ((12, 16), (9, 12)):
        x = rand(3, channels, height, width)
        for frozen in (False, True):
            results = []
            for conv in (fast, plain):
                conv.requires_grad_(not frozen).zero_grad()
                images = x.clone().requires_grad_()
                out = conv(images)
                (out * rand(*out.shape, seed=5)).sum().backward()
                results.append([out, images.grad, *([] if frozen else [p.grad for p in conv.parameters()])])
            for own, expected in zip(*results, strict=True):
                torch.testing.assert_close(own, expected, rtol=1e-10, atol=1e-12)
    out = fast.requires_grad_(False)(torch.zeros(1, channels, 8, 8).double().requires_grad_())
    assert "_FrozenConv" in type(out.grad_fn).__name__


@pytest.mark.parametrize("network", ["lenet5", "wrn_10_1"])
def test_bfloat16_twin_follows_its_network(network):
    torch.manual_seed(0)
    model = build_model(network, 3, 16, 16, 10).train()
    twin, x = BFloat16Twin(model), torch.rand(4, 3, 16, 16)
    for _ in range(2):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.02 * torch.randn_like(p))
            model(x)  # moves running statistics
        kept = copy.deepcopy(model.state_dict())
        twin.refresh(model)
        expected, found = copy.deepcopy(model).eval()(x), twin(x)
        assert found.dtype == torch.float32
        scale = expected.abs().max()
        assert 0 < (found - expected).abs().max() < 0.05 * scale
        assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert model.training and all(p.requires_grad for p in model.parameters())
    dtypes = {name: value.dtype for name, value in twin.copy.state_dict().items()}
    assert {dtypes[name] for name in dtypes if "bn" in name and "num" not in name} <= {torch.float32}
    assert next(kind for name, kind in dtypes.items() if "conv1.weight" in name) == torch.bfloat16


def test_success_is_judged_in_float32():
    """Images stay in it, within the ball, and about as many fall."""
    torch.manual_seed(0)
    model = LeNet5Madry(1, 8, 8).to(memory_format=torch.channels_last).requires_grad_(False).eval()
    model.linear2.weight.mul_(8)
    x = rand(60, 1, 8, 8, seed=3).float()
    y = model(x).argmax(1)
    how = {"norm": "Linf", "eps": 0.03, "step_size": 0.0075, "steps": 10}
    plain, found = (
        repeated_pgd(model, x, y, torch.arange(60), restarts=restarts, eps=0.03, batch_size=20)
        for attack in (pgd, FastPgd(model, "bf16"))
        for restarts in [[from_noise(attack, loss_fn=loss, **how) for loss in (cross_entropy, cw_loss)]]
    )
    torch.testing.assert_close(found.margin, logit_margin(model(found.x_adv), y), rtol=1e-5, atol=1e-5)
    assert 5 < found.robust.sum() < 55 and abs(int(found.robust.sum()) - int(plain.robust.sum())) <= 1
    assert found.x_adv.dtype == torch.float32 and (found.x_adv - x).abs().max() <= 0.03 + 1e-6
    assert not torch.equal(found.x_adv, plain.x_adv), "bfloat16 was not used"


def test_bfloat16_training_judges_in_float32():
    """Exact resume in bfloat16: see tests/test_trainer.py."""
    changes = {"norm": "L2", "attack_mineps": 0.1, "hinge_maxeps": 0.25}
    trainer, plain = (tiny_trainer(precision=precision, **changes) for precision in ("bf16", "fp32"))
    dtypes = []
    trainer.model.register_forward_hook(lambda module, inputs, output: dtypes.append((output.dtype, module.training)))
    for _ in range(7):
        trainer.train_step(), plain.train_step()
    assert set(dtypes) == {(torch.float32, True)}, "the network itself runs in train mode and float32 only"
    assert not torch.equal(trainer.model[0].weight, plain.model[0].weight), "bfloat16 was not used"


def test_tf32_switches_are_put_back():
    switches = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [s.allow_tf32 for s in switches]
    with pytest.raises(KeyError), tf32(True):
        assert all(s.allow_tf32 for s in switches)
        raise KeyError
    assert [s.allow_tf32 for s in switches] == before


@pytest.mark.filterwarnings("ignore:indexing with dtype torch.uint8")  # advertorch's
@pytest.mark.parametrize("batchnorm", [True, False])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_benchmarks_baseline_computes_our_gradient(norm, batchnorm):
    """Two steps, so that the second starts from the radii the first stored."""
    config = settings(norm, 1 / 3)
    ours = network(batchnorm)
    theirs = copy.deepcopy(ours)
    batch = batch_for(ours)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9) for m in (ours, theirs)]
    baseline = ReferenceStyle(theirs, config, optimizers[1], random_start=False)
    eps = torch.zeros(12, dtype=torch.float64)
    for _ in range(2):
        optimizers[0].zero_grad()
        eps = step(ours.train(), batch.x, batch.y, eps.clamp(min=config.attack_mineps), None, config).eps
        baseline.step(*batch)
        assert 0 < (eps > 0).sum() < 12
        for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(own.grad, other.grad, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(torch.tensor([baseline.eps[i] for i in range(12)], dtype=eps.dtype), eps)
        optimizers[0].step()
    for own, other in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(own, other)


def test_slow_arithmetic_is_said(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert remark(cpu, "fp32") is None and remark(cuda, "bf16") is None and "CUDA's" in remark(cpu, "tf32")
    for flags, slow in (("fpu avx2", True), ("fpu avx512_bf16", False), ("asimd bf16", False)):
        monkeypatch.setattr(Path, "read_text", lambda self, flags=flags: f"flags\t: {flags}\n")
        assert [remark(cpu, precision) is not None for precision in ("bf16", "bf16_all")] == [slow, slow]
