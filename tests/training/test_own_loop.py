"""MMA in a training loop of one's own: train.py's gradient and radii, and the README's loop on the digits."""

import copy
import re

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from support import ROOT
from tiny_runs import network, settings, tiny_data
from trainer import Trainer
from training.own_loop import MmaObjective


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("alpha", [0.0, 1 / 3])
@pytest.mark.parametrize("batchnorm", [True, False])
def test_gradient_and_radii_are_those_of_train_py(norm, alpha, batchnorm):
    config = settings(norm, alpha, method="mma" if alpha else "omma", batch_size=6, max_steps=9, seed=3)
    trainer = Trainer(config, network(batchnorm).float(), tiny_data())
    objective = MmaObjective(
        len(trainer.data.train), norm, config.hinge_maxeps, config.attack_mineps, config.nb_iter, alpha, config.seed
    )
    for step in range(6):  # into the second epoch, where the radii of the first count
        own = copy.deepcopy(trainer.model).train()
        x, y, index = trainer.batches(step)
        own.zero_grad()
        result = objective(own, x, y, index)
        theirs = trainer.train_step()
        assert torch.equal(result.eps, theirs.eps) and torch.equal(objective.eps, trainer.eps)
        for mine, other in zip(own.parameters(), trainer.model.parameters(), strict=True):
            assert torch.equal(mine.grad, other.grad)
        for mine, other in zip(own.buffers(), trainer.model.buffers(), strict=True):
            assert torch.equal(mine, other)
    assert objective.eps.any()


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm1d(8), nn.Sequential(nn.Unflatten(1, (8, 1, 1)), nn.BatchNorm2d(8), nn.Flatten())]
)
def test_one_right_example_and_batchnorm_of_vectors(norm):
    """Which refuses a single row in train mode."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), copy.deepcopy(norm), nn.ReLU(), nn.Linear(8, 2)).train()
    x = torch.rand(4, 1, 4, 4)
    chances = copy.deepcopy(model)(x).softmax(1)
    y = chances.argmin(1)
    y[0] = chances[0].argmax()
    result = MmaObjective(4, "Linf", 0.3, 0.05)(model, x, y, torch.arange(4))
    assert (result.eps > 0).tolist() == [True, False, False, False]


class Keeps(nn.Linear):
    """Keeps what it saw, with its history, which cannot be copied."""

    def forward(self, x):
        self.seen = super().forward(x.flatten(1))
        return self.seen


def test_a_network_that_cannot_be_copied_is_trained():
    torch.manual_seed(0)
    model, x, y = Keeps(16, 2), torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 0, 1])
    model(x)
    with pytest.raises(RuntimeError):
        copy.deepcopy(model)
    MmaObjective(4, "Linf", 0.3, 0.05)(model, x, y, torch.arange(4))
    assert model.weight.grad.any()


def test_the_documented_loop_is_short_and_trains(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "your-network.md").read_text(), flags=re.DOTALL)
    (code,) = [block for block in blocks if "mma_objective" in block]
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    names = {}
    torch.manual_seed(0)
    exec(compile(code, "README.md", "exec"), names)
    margins = [float(number) for number in re.findall(r"mean margin (\S+)", capsys.readouterr().out)]
    assert len(margins) > 3 and margins == sorted(margins) and margins[-1] > 0.08 > 2 * margins[0]
    assert (names["model"](names["images"]).argmax(1) == names["labels"]).float().mean() > 0.9


WHOLE = (torch.int64, torch.int32, torch.uint8)  # labels and index may be of any


def test_a_loop_goes_on_from_tensors_and_numbers(tmp_path):
    """Stopped, saved and read back as data, in mid-epoch: the same gradients and radii, bit for bit."""

    def objective():
        return MmaObjective(12, "L2", 1.0, 0.1, steps=3)

    model, whole = network().float(), objective()
    x, y = torch.rand(12, 1, 8, 8), torch.arange(12) % 4
    batches = [torch.arange(12)[i::4] for i in (0, 1, 2, 3, 0, 1)]

    def step(mma, rows):
        model.zero_grad()
        return mma(model.train(), x[rows], y[rows], rows).eps, [p.grad.clone() for p in model.parameters()]

    buffers, found = copy.deepcopy(model.state_dict()), [step(whole, rows) for rows in batches]
    model.load_state_dict(buffers)
    first, second = objective(), objective()
    for rows in batches[:3]:
        step(first, rows)
    torch.save(first.state_dict(), tmp_path / "mma.pt")
    second.load_state_dict(torch.load(tmp_path / "mma.pt", weights_only=True))
    for rows, (eps, gradients) in zip(batches[3:], found[3:], strict=True):
        again, same = step(second, rows)
        assert torch.equal(again, eps) and all(map(torch.equal, same, gradients))
    assert torch.equal(second.eps, whole.eps) and first.step == 3 and whole.eps.any()
    batch = x[:5], y[:5], torch.arange(5)
    numbers = [objective()(model.train(), batch[0], *(t.to(kind) for t in batch[1:])).eps for kind in WHOLE]
    assert all(torch.equal(eps, numbers[0]) for eps in numbers)
    with pytest.raises(ValueError, match="of 12 training examples, here are 5"):
        MmaObjective(5, "L2", 1.0, 0.1).load_state_dict(first.state_dict())


@pytest.mark.parametrize("autocast", [False, True])
def test_a_loop_as_people_write_them(autocast):
    """A loader with workers, a schedule, clipped gradients, an average of weights, bfloat16 by autocast; losses logged."""
    digits = load_digits()
    x, y = torch.tensor(digits.images[:400] / 16, dtype=torch.float32)[:, None], torch.tensor(digits.target[:400])
    torch.manual_seed(0)
    rows = torch.utils.data.TensorDataset(x, y, torch.arange(400))
    loader = torch.utils.data.DataLoader(rows, batch_size=50, shuffle=True, num_workers=2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.3, total_steps=5 * len(loader))
    average = torch.optim.swa_utils.AveragedModel(model)
    mma, losses = MmaObjective(400, "Linf", 0.3, 0.05, steps=4), []
    for _ in range(5):
        for images, labels, index in loader:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                result = mma(model, images, labels, index)
            losses.append(float(result.clean_loss))
            assert nn.utils.clip_grad_norm_(model.parameters(), 1.0).isfinite()
            optimizer.step(), schedule.step()
            average.update_parameters(model)
    assert sum(losses[-8:]) < sum(losses[:8]) / 3 and (mma.eps > 0.05).float().mean() > 0.5
    assert (average(x).argmax(1) == y).float().mean() > 0.6


WRONG = {"norm": ["L1"], "d_max": [0.0, float("inf"), 1.5], "eps_min": [0.0, 0.4]}
WRONG |= {"count": [0], "steps": [0], "alpha": [1.5]}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_settings_that_mean_nothing_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        MmaObjective(**{"count": 5, "norm": "Linf", "d_max": 0.3, "eps_min": 0.05} | {name: value})


@pytest.mark.parametrize("change", [lambda x: 255 * x, lambda x: x - 0.5, lambda x: x * torch.nan])
def test_images_outside_of_0_and_1_are_refused(change):
    mma = MmaObjective(count=4, norm="Linf", d_max=0.3, eps_min=0.05)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    x, y, index = torch.rand(4, 1, 2, 2), torch.zeros(4, dtype=torch.long), torch.arange(4)
    with pytest.raises(ValueError, match=r"images: from \S+ to \S+, must lie in \[0, 1\]"):
        mma(network, change(x), y, index)
    for labels, which, said in (
        (y - 1, index, "labels: .* integers from 0 up"),
        (y.float(), index, "labels: .* torch.float32"),
        (y[:3], index, r"labels: of shape \(3,\)"),
        (y, index - 1, "index: .* integers from 0 up"),
        (y, index + 1, "index: 4 of 4 training examples"),
    ):
        with pytest.raises(ValueError, match=said):
            mma(network, x, labels, which)
    assert mma.step == 0 and network[1].weight.grad is None
    mma(network, x, y, index)
