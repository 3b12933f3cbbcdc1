"""DDN: the closed form on a linear model, foolbox's on another, and training at its points."""

import foolbox
import torch

from command_lines import fails
from ddn import Ddn
from flags import parse_train
from linear import problem
from losses import cross_entropy
from networks.lenet import LeNet5Madry
from tiny_runs import tiny_trainer
from train import main

FAR = 100.0


def lengths(x_adv, x):
    return (x_adv - x).flatten(1).norm(dim=1)


def test_on_a_linear_model_it_is_the_margin():
    """|margin| / ||w||, approached from above by a twentieth a step; a wrong image is its own nearest."""
    model, x, y = problem((3, 4, 4), 8, "L2")
    eps = torch.full((8,), FAR, dtype=torch.float64)
    margin = model.score(x).detach().abs() / model.w.detach().norm()
    x_adv = Ddn(300, cross_entropy)(model, x, y, eps)
    over = lengths(x_adv, x) / margin
    assert (model(x_adv).argmax(1) != y).all() and (over >= 1 - 1e-9).all() and over.max() < 1.06
    wrong = Ddn(5, cross_entropy)(model, x, 1 - y, eps)
    assert torch.equal(wrong, x)


def test_it_finds_what_foolbox_finds_and_stays_within_eps():
    torch.manual_seed(0)
    model, x = (
        LeNet5Madry(1, 8, 8).eval(),
        0.2 + 0.6 * torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(1)),
    )
    y = model(x).argmax(1)
    theirs = foolbox.attacks.DDNAttack(steps=100, init_epsilon=1.0, gamma=0.05)
    _, others, _ = theirs(foolbox.PyTorchModel(model, bounds=(0, 1)), x, y, epsilons=None)
    ours = Ddn(100, cross_entropy)(model, x, y, torch.full((30,), FAR))
    assert (model(ours).argmax(1) != y).all() and (ours >= 0).all() and (ours <= 1).all()
    ratio = lengths(ours, x) / lengths(others, x)
    assert 0.97 < ratio.median() < 1.03 and ratio.max() < 1.2
    eps = lengths(ours, x) * torch.linspace(0.5, 1.5, 30)
    torch.manual_seed(5)
    capped = Ddn(100, cross_entropy)(model, x, y, eps)
    assert (lengths(capped, x) <= eps * (1 + 1e-5)).all() and (model(capped).argmax(1) == y)[:10].all()


def test_it_trains_and_is_refused_where_it_means_nothing(capsys, tmp_path):
    trainer = tiny_trainer(method="ddn", norm="L2", train_eps=0.5, hinge_maxeps=None, nb_iter=7)
    before = [p.clone() for p in trainer.parameters]
    assert trainer.train_step().passes == 6 * trainer.config.passes_an_image == 6 * 8
    assert any(not torch.equal(old, p) for old, p in zip(before, trainer.parameters, strict=True))
    row = trainer._train_row(1.0)
    assert row["clean_loss"] is None and row["clean_acc"] is None, "it sees no clean image"
    assert row["adv_loss"] > 0 and 0 <= row["adv_acc"] <= 1
    run = ["--dataset", "digits", "--method", "ddn", "--max_steps", "2", "--savepath", str(tmp_path / "run")]
    fails(capsys, main, [*run, "--norm", "Linf"], "--method ddn: is an attack under L2")
    fails(capsys, main, [*run, "--norm", "L2", "--odi_steps", "2"], "--odi_steps: has no meaning with --method ddn")
    assert main([*run, "--norm", "L2", "--train_size", "60", "--nb_iter", "3"]) == 0
    config, _ = parse_train(["--dataset", "mnist", "--norm", "L2", "--method", "ddn", "--recipe", "fast"])
    assert (config.nb_iter, config.max_steps, config.step_decay) == (20, 2200, False)
