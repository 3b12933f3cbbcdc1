"""Every command in the README and in scripts/*.sh parses; the README's Python snippets run."""

import re
import shlex
import subprocess

import pytest

import evaluate_on_autoattack
import evaluate_on_gradient_free_attacks
import evaluate_on_minimum_norm
import evaluate_on_transfer as transfer
from flags import parse_eval, parse_train
from support import ROOT

PARSERS = {
    "train.py": parse_train,
    "evaluate_on_pgd_attacks.py": parse_eval,
    "evaluate_on_autoattack.py": evaluate_on_autoattack.parse,
    "evaluate_on_gradient_free_attacks.py": evaluate_on_gradient_free_attacks.parse,
    "evaluate_on_minimum_norm.py": evaluate_on_minimum_norm.parse,
    "evaluate_on_transfer.py": transfer.parse,
}
DIGITS_TABLE = ROOT / "scripts" / "run_digits_table.sh"  # a loop, not literal commands
SHELL_FILES = sorted(set((ROOT / "scripts").glob("*.sh")) - {DIGITS_TABLE})
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands(text):
    """(program, arguments) of each `python PROGRAM …` of ours, with shell variables and line continuations resolved."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        line = line.replace('"$@"', "").replace("$root/", "").split(" #")[0]
        match = re.search(r"python\S* (\S*?)(train\.py|evaluate_on_\w+\.py)\b\"?(.*)", line)
        if match and not line.lstrip().startswith("#"):
            found.append((match[2], shlex.split(match[3])))
    return found


@pytest.mark.parametrize("path", SHELL_FILES, ids=lambda p: p.name)
def test_shell_scripts(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
    for program, argv in commands(path.read_text()):
        PARSERS[program](argv)


def test_runs_of_the_digits_table_stand_under_their_names():
    subprocess.run(["bash", "-n", str(DIGITS_TABLE)], check=True)
    runs = re.search(r"<<'RUNS'\n(.*?)RUNS", DIGITS_TABLE.read_text(), flags=re.DOTALL)[1].splitlines()
    assert len(runs) == 7
    for line in runs:
        name, *flags = line.split()
        config, _ = parse_train(["--dataset", "digits", "--norm", "Linf", *flags])
        assert config.run_name == f"digits-Linf-{name}-sd0"


NAMED = [
    ("run_mnist_training", 8),
    ("run_cifar10_training", 12),
    ("run_mnist_baselines", 15),
    ("run_cifar10_baselines", 20),
]


@pytest.mark.parametrize(("name", "count"), NAMED)
def test_published_runs_stand_under_their_names(name, count):
    """The name of each run folder is the one its flags give."""
    found = commands((ROOT / "scripts" / f"{name}.sh").read_text())
    names = []
    for _, argv in found:
        config, _ = parse_train(argv)
        assert config.savepath == f"trained_models/{config.run_name}" and config.resume
        names.append(config.run_name)
    assert len(set(names)) == count
    if name.endswith("baselines"):
        return
    attacked = re.findall(
        r"trained_models/(\S+?)\"",
        (ROOT / "scripts" / name.replace("run", "attack").replace("training", "models.sh")).read_text(),
    )
    assert attacked == names


def test_extra_arguments_reach_every_command():
    for path in SHELL_FILES:
        for line in path.read_text().splitlines():
            if "--savepath" in line or "--model " in line:
                assert line.rstrip().endswith('"$@"')


def test_readme_commands():
    found = [c for block in blocks("bash") for c in commands(block)]
    assert len(found) >= 5
    for program, argv in found:
        PARSERS[program](argv)
    for script in re.findall(r"bash (scripts/\S+\.sh)", README):
        assert (ROOT / script).exists(), script
    for script in re.findall(r"python (scripts/\S+\.py)", README):
        assert (ROOT / script).exists(), script


def test_readme_snippets_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert blocks("python")
    for code in blocks("python"):
        exec(compile(code, "README.md", "exec"), {})


def test_readme_names_every_file():
    listed = README[README.index("## Files") :]
    for path in [*ROOT.glob("*.py"), *(ROOT / "scripts").glob("*.*")]:
        assert path.name in listed, path.name


def test_readme_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
