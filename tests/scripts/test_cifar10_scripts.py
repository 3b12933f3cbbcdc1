"""The study of CIFAR-10 on a CPU: every command that the script would run, under which names, and what the ablation leaves out."""

import pytest

from dry_runs import dry_run
from flags import parse_train
from programs import PARSERS

SCRIPT = "run_cifar10_small_study.sh"
OTHERS = ("scripts/round_weights.py", "reports/make_tables.py", "reports/compare_runs.py")
SEVEN = ("STD", "PGD-8", "PGD-16", "TRADES-8", "MMA-12", "MMA-20", "MMA-32")
# Flags that have a meaning together.
TOGETHER = ({"keep_directions", "refresh_interval"}, {"one_cycle", "lr"})
GRID = [f"{4 * k}/255" for k in range(1, 9)]


def run_of(name, seed=0):
    return f"trained_models/cifar10jpeg-Linf-{name}-sd{seed}-fast"


def values(argv, flag):
    """The words after a flag, up to the next."""
    rest = argv[argv.index(flag) + 1 :]
    return rest[: next((i for i, word in enumerate(rest) if word.startswith("--")), len(rest))]


def trainings(calls):
    """Run folder -> its config."""
    return {values(argv, "--savepath")[0]: parse_train(argv)[0] for program, *argv in calls if program == "train.py"}


@pytest.mark.parametrize("tier", ["1", "2", "3", "123"])
def test_every_command_parses(tier, tmp_path):
    calls, _ = dry_run(SCRIPT, tmp_path, TIERS=tier)
    for program, *argv in calls:
        if program in PARSERS:
            PARSERS[program](argv)
        else:
            assert program in OTHERS
        assert "--data_root" not in argv or values(argv, "--data_root") == ["data"]
    assert len(trainings(calls)) == {"1": 7, "2": 2, "3": 16, "123": 25}[tier]


def test_runs_stand_under_their_names_and_are_rounded_before_they_are_attacked(tmp_path):
    calls, _ = dry_run(SCRIPT, tmp_path, TIERS="12")
    for folder, config in trainings(calls).items():
        assert folder == "trained_models/" + config.run_name.replace("imagefolder", "cifar10jpeg")
        assert (config.recipe, config.network, config.streaming) == ("fast", "small_resnet", False)
        own = [call for call in calls if folder in call]
        assert [call[0].split("/")[-1] for call in own][:2] == ["train.py", "round_weights.py"]
    assert set(trainings(calls)) == {*map(run_of, SEVEN), run_of("PGD-8", 1), run_of("MMA-20", 1)}


def test_a_network_that_was_attacked_is_not_rounded_again(tmp_path):
    name = run_of("STD").split("/")[1]
    (tmp_path / "trained_models" / name).mkdir(parents=True)
    (tmp_path / "trained_models" / name / "eval_pgd_Linf.json").write_text("{}")
    calls, _ = dry_run(SCRIPT, tmp_path, TIERS="1")
    rounded = [argv[0] for program, *argv in calls if program == "scripts/round_weights.py"]
    assert rounded == [run_of(method) for method in SEVEN[1:]]


def test_attacks(tmp_path):
    calls, _ = dry_run(SCRIPT, tmp_path, TIERS="1")
    attacks = [call for call in calls if call[0].startswith("evaluate")]
    for method in SEVEN:
        own = ["--model", run_of(method)]
        many, whole, auto = (argv for _, *argv in attacks if argv[:2] == own)
        assert values(many, "--eps") == values(whole, "--eps") == GRID and values(auto, "--eps") == ["8/255"]
        sizes = [values(argv, "--test_size") for argv in (many, whole, auto)]
        assert sizes == [["1000"], ["200"], ["200"]]
        assert (values(many, "--nb_restart"), values(many, "--nb_iter")) == (["5"], ["50"])
        assert "--nb_restart" not in whole and "--nb_iter" not in whole
    program, *transfer = attacks[-1]
    assert program == "evaluate_on_transfer.py" and transfer[:7] == [run_of(method) for method in SEVEN]
    assert len(attacks) == 3 * 7 + 1


def test_each_run_of_the_ablation_leaves_out_one_part(tmp_path):
    calls, _ = dry_run(SCRIPT, tmp_path, TIERS="3")
    runs = {(config.norm, folder.split("-sd0-")[1]): config.to_dict() for folder, config in trainings(calls).items()}
    free = {"savepath", "max_steps", "cycle_steps", "num_search_steps"}
    for (norm, name), config in runs.items():
        parts = {key for key, value in config.items() if value != runs[norm, "fast"][key]} - free
        if name.startswith("fast-"):
            assert len(parts) == 1 or parts - {"nb_iter"} in TOGETHER, (name, parts)
        assert config["seed"] == 0 and config["hinge_maxeps"] == {"Linf": 20 / 255, "L2": 1.0}[norm]
    assert runs["Linf", "paper"]["recipe"] == "paper" and runs["Linf", "paper"]["search_mode"] == "train"
    attacks = [argv for program, *argv in calls if program.startswith("evaluate")]
    assert len(attacks) == 16 and all(values(argv, "--split") == ["val"] for argv in attacks)
