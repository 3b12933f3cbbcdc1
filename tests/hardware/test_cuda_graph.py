"""CUDA graphs, by a recorder that replays on the CPU: what is recorded, and that a replay gives what the plain code gives."""

from types import SimpleNamespace

import pytest
import torch

from errors import UserError
from hardware import cuda_graph
from hardware.cuda_graph import Captured
from hardware.fast_pgd import FastPgd
from hardware.layout import layout_for
from launches import Launches, replayed
from losses import cross_entropy, cw_loss, soft_logit_margin
from objectives import divergence
from pgd import pgd
from tiny_runs import batch_for, network, rand, tiny_trainer


@pytest.fixture(autouse=True)
def without_a_gpu(monkeypatch):
    monkeypatch.setattr(cuda_graph, "record_on_cuda", replayed)


def recorded(device, batchnorm, processes=1, records=True):
    """Of a step with 6 images, a check with 9: whether its gradient is recorded, rows of its and the check's attack."""
    trainer = tiny_trainer(model=network(batchnorm).float(), eval_batch_size=9)
    trainer.device, trainer.world = torch.device(device), SimpleNamespace(size=processes)
    trainer._make_step(records)
    return isinstance(trainer.gradient, Captured), trainer.attack.rows, trainer.check_attack.rows


def test_built_in_networks_are_recorded_on_cuda_and_the_whole_gradient_without_batchnorm():
    assert recorded("cpu", True) == recorded("cuda", True, records=False) == (False, None, None)
    assert recorded("cuda", False) == (True, None, 9)
    assert recorded("cuda", False, processes=2) == (False, 3, 9)
    assert recorded("cuda", True) == (False, 6, 9)


def test_the_rule_of_layouts():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert layout_for(cuda, "fp32", False) == (False, True)
    assert all(layout_for(cuda, precision, False) == (True, True) for precision in ("tf32", "bf16", "bf16_all"))
    assert all(layout_for(cuda, precision, True) == (False, False) for precision in ("fp32", "tf32", "bf16"))
    assert layout_for(cpu, "fp32", False) == layout_for(cpu, "bf16", True) == (True, False)


def test_captured_replays_one_shape_and_runs_the_others():
    weight, calls = torch.tensor(2.0), []

    def fn(x, y):
        calls.append(len(x))
        return x * weight + y, None

    captured = Captured(fn, 5)
    for _ in range(3):
        x, y = torch.rand(5), torch.rand(5)
        before = x.clone(), y.clone()
        torch.testing.assert_close(captured(x, y)[0], x * weight + y)
        assert torch.equal(x, before[0]) and torch.equal(y, before[1])
        weight.mul_(1.5)  # as an optimizer does: in place
    first = captured(torch.ones(5), torch.ones(5))[0]
    assert captured(torch.zeros(5), torch.zeros(5))[0] is first, "outputs are overwritten, not made anew"
    assert len(captured(torch.rand(3), torch.rand(3))[0]) == 3
    assert calls[:-1] == [5] * (len(calls) - 1) and calls[-1] == 3


def test_a_recording_that_fails_ends_the_run_naming_the_flag(monkeypatch):
    def fail(fn, inputs):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(cuda_graph, "record_on_cuda", fail)
    with pytest.raises(UserError, match=r"not permitted when stream is capturing.*--no-cuda_graphs"):
        Captured(lambda x: x + 1, 2)(torch.zeros(2))


@pytest.mark.parametrize("alpha", [0.0, 1 / 3, 1.0])
def test_training_with_a_replayed_gradient_equals_plain_training(alpha):
    """Over an epoch's end, where a batch is smaller, and back to the replayed shape."""
    plain, fast = (tiny_trainer(model=network(False, 60).float(), clean_loss_coeff=alpha) for _ in range(2))
    fast.gradient = Captured(fast._gradient, fast.config.batch_size)
    sizes = set()
    for _ in range(2 * plain.steps_per_epoch + 2):
        expected, found = plain.train_step(), fast.train_step()
        sizes.add(len(found.eps))
        torch.testing.assert_close(found.eps, expected.eps, rtol=0, atol=1e-4)
    assert len(sizes) == 2 and (alpha == 1 or plain.eps.any())
    for own, other in zip(fast.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("decays", [False, True])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_padded_and_replayed_pgd_equals_pgd(norm, decays, monkeypatch):
    """For several losses, radii and numbers of rows and steps, and after the weights changed; of one step a recording."""
    model, recorded = network(), []

    def record(fn, inputs):
        with Launches() as seen:
            fn(*inputs)
        recorded.append(seen.launched["convolution"])
        return replayed(fn, inputs)

    batch = batch_for(model)
    log_p = model(batch.x).log_softmax(1).detach()
    monkeypatch.setattr(cuda_graph, "record_on_cuda", record)
    fast = FastPgd(model, "fp32", rows=16)
    for turn, loss_fn in enumerate([cross_entropy, cw_loss, soft_logit_margin, divergence, cross_entropy]):
        with torch.no_grad():
            model[0].weight.add_(0.1 * turn)
        rows = slice(0, 12 - 2 * turn)
        x, y = batch.x[rows], (log_p if loss_fn is divergence else batch.y)[rows]  # TRADES: the clean output
        how = {"loss_fn": loss_fn, "norm": norm, "eps": 0.02 * (turn + 1), "step_size": 0.01, "decays": decays}
        how |= {"noise": rand(*x.shape, seed=turn), "steps": 1 + turn}
        torch.testing.assert_close(fast(model, x, y, **how), pgd(model, x, y, **how), rtol=0, atol=1e-12)
    assert recorded == [1, 1, 1, 1], "one step for each loss"
    assert model.training and all(p.requires_grad for p in model.parameters())


def test_kernels_are_timed_for_fixed_shapes_only():
    """A search on the right rows alone has another number of them at each step, and each would be timed."""
    model, seen = network(), []
    batch = batch_for(model)
    model.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.benchmark))
    how = {"loss_fn": cross_entropy, "norm": "Linf", "eps": 0.1, "step_size": 0.03, "steps": 2}
    for rows, tune, expected in ((16, True, True), (16, False, False), (None, True, False), (8, True, False)):
        seen.clear()
        FastPgd(model, "fp32", rows, tune)(model, batch.x, batch.y, **how)
        assert seen[0] is expected  # a replay on the CPU calls the network, one on a GPU does not
    assert not torch.backends.cudnn.benchmark
