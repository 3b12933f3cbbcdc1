"""Every command in the docs and in scripts/*.sh parses, every link leads somewhere, Python snippets run, quotes are true."""

import argparse
import dataclasses
import re
import runpy
import shlex
import subprocess
import sys

import pytest
import torch

from config import Config
from flags import parse_train
from modules import MODULES
from programs import PARSERS
from support import ROOT

DIGITS_TABLE = ROOT / "scripts" / "run_digits_table.sh"  # a loop, not literal commands
GPU_HOUR = ROOT / "scripts" / "first_gpu_hour.sh"  # its commands are made of variables; a test of its own runs it dry
DRY_RUNS = {
    ROOT / "scripts" / name for name in ("run_mnist_fast.sh", "run_mnist_ablation.sh", "run_cifar10_small_study.sh")
}  # likewise, in tests/scripts
SHELL_FILES = sorted(set((ROOT / "scripts").glob("*.sh")) - {DIGITS_TABLE, GPU_HOUR, *DRY_RUNS})
README = (ROOT / "README.md").read_text()
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
}
# Shell scripts whose own arguments reach a program of ours.
HAND_ON = {
    **dict.fromkeys(("train_on_one_node.sh", "train_with_slurm.sh"), "train.py"),
    "soak.sh": "benchmarks/soak.py",
}
TAKE_NO_FLAGS = {"quickstart.sh"}


def blocks(language, text=README):
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands(text):
    """(program, arguments) of each `python PROGRAM …` of ours, with shell variables and line continuations resolved."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        line = line.replace('"$@"', "").replace("$root/", "").split(" #")[0]
        line = re.sub(r'"\$\{\w+\[@\]\}"', "one two", line)  # an array of run folders
        match = re.search(r"(?:python|torchrun)\S* (?:--?\S+ )*(\S*?)(train\.py|evaluate_on_\w+\.py)\b\"?(.*)", line)
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
    script = ROOT / "scripts" / name.replace("run", "attack").replace("training", "models.sh")
    attacked = re.findall(r"[a-z0-9]+-(?:Linf|L2)-O?MMA-[\d.]+-sd0", script.read_text())
    assert attacked == names


def test_extra_arguments_reach_every_command():
    for path in SHELL_FILES:
        for line in path.read_text().splitlines():
            if "--savepath" in line or "--model " in line:
                assert line.rstrip().endswith('"$@"')


def program_lines(text):
    """(program, arguments) of each line of a shell block that starts a file of ours; what else it does is left out."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        line = re.sub(r"^(?:\w+=\S+ )*", "", line.split(" #")[0].split(" && ")[-1].strip())
        match = re.match(r"(?:\S*python3?|torchrun|bash|sbatch|source)((?: -\S+)*) (\S+\.(?:py|sh))\b(.*)", line)
        if match:
            found.append((match[2], shlex.split(match[3])))
    return found


WRITTEN = [
    pytest.param(program, argv, id=f"{page}: {program} {' '.join(argv)}"[:90])
    for page, text in PAGES.items()
    for block in blocks("bash", text)
    for program, argv in program_lines(block)
]


class Parsed(Exception):
    """The command line was taken."""


def parse_only(program, argv, monkeypatch):
    """Start a program of ours that has no parser of its own name, up to the end of its command line."""
    known = argparse.ArgumentParser.parse_known_args

    def parse(self, args=None, namespace=None):
        _, unknown = known(self, args, namespace)
        assert not unknown, f"{program}: {unknown}"
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse)
    monkeypatch.setattr(sys, "argv", [program, *argv])
    with pytest.raises(Parsed):
        runpy.run_path(str(ROOT / program), run_name="__main__")


def has_parser(program):
    return any(word in (ROOT / program).read_text() for word in ("argparse", "Parser(", "picture_command("))


@pytest.mark.parametrize(("program", "argv"), WRITTEN)
def test_commands_in_the_docs_parse(program, argv, monkeypatch):
    path = ROOT / program
    assert path.exists(), program
    if path.suffix == ".sh":
        if path.name in TAKE_NO_FLAGS or path.name not in HAND_ON:
            given = [flag for flag in argv if flag.startswith("--")]
            assert not given or any("$@" in line for line in path.read_text().splitlines())
            return
        program = HAND_ON[path.name]
    if program in PARSERS:
        PARSERS[program](argv)
    elif has_parser(program):
        parse_only(program, argv, monkeypatch)
    else:
        assert not argv


def test_most_pages_hold_commands():
    assert len(WRITTEN) >= 40


@pytest.mark.parametrize("page", ["README.md", "docs/usage.md", "docs/evaluation.md"])
def test_runs_in_examples_are_in_the_clone(page):
    """Or the line says what makes them."""
    lines = [line for block in blocks("bash", PAGES[page]) for line in block.splitlines()]
    named = [(name, line) for line in lines for name in re.findall(r"(?<!into )trained_models/[\w.*-]+", line)]
    assert len(named) >= 1
    for name, line in named:
        assert list(ROOT.glob(name)) or "once scripts/" in line, name


PROGRAMS = sorted(  # in the same order in every worker
    str(path.relative_to(ROOT))
    for path in MODULES.values()
    if path.parent != ROOT and '__name__ == "__main__"' in path.read_text()
)


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_answers_help(program, capsys, monkeypatch):
    """And does nothing else; on a path that holds only what its first lines put there."""
    assert has_parser(program)
    ours = [str(ROOT / folder) for folder in (".", "tests/support", "tests/processes")]
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ours])
    monkeypatch.setattr(sys, "argv", [program, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / program), run_name="__main__")
    assert ended.value.code == 0 and capsys.readouterr().out.startswith("usage: ")


def test_a_wrong_flag_is_seen(monkeypatch):
    with pytest.raises((AssertionError, SystemExit)):
        parse_only("benchmarks/soak.py", ["--no_such_flag", "1"], monkeypatch)


@pytest.mark.parametrize("page", PAGES)
def test_programs_named_in_the_text_are_there(page):
    """Each `scripts/x.sh`, `reports/x.py`, … in running text, in tables and in blocks."""
    if page == "CHANGELOG.md":  # it names what was
        return
    for path in re.findall(
        r"(?<![\w/.…])((?:scripts|reports|benchmarks|evaluations|tests|docs)/[\w/]+\.(?:sh|py|md))", PAGES[page]
    ):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"`(test_\w+\.py)`", PAGES[page]):
        assert list((ROOT / "tests").rglob(name)), name


@pytest.fixture
def one_thread():
    """Thousands of small operations only wait for a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if blocks("python", text)])
def test_snippets_run(page, monkeypatch):
    if page == "docs/CONTRIBUTING.md":  # quotes, compared with the code below
        return
    monkeypatch.chdir(ROOT)  # they name the clone as "."
    for code in blocks("python", PAGES[page]):
        exec(compile(code, page, "exec"), {})


def anchors(text):
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", re.sub(r"^```.*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text()), target


def test_readme_is_short_and_in_order():
    assert len(README.splitlines()) <= 200
    order = [
        "docs/idea.png",
        "bash scripts/quickstart.sh",
        "python train.py",
        "python evaluate_on_pgd_attacks.py",
        "bash scripts/run_mnist_training.sh",
        "<!-- results:begin -->",
        "--dataset imagefolder",
        "torch.hub.load(",
        "docs/architecture.md",
        "@inproceedings",
    ]
    places = [README.index(text) for text in order]
    assert places == sorted(places)


def test_results_in_the_readme_have_six_columns_at_most():
    rows = README.split("<!-- results:begin -->")[1].split("<!-- results:end -->")[0].strip().splitlines()
    assert rows[0].startswith("|")
    for row in rows:
        assert row.count("|") <= 7


def test_every_page_is_linked_from_the_readme():
    for page in (ROOT / "docs").glob("*.md"):
        assert f"](docs/{page.name})" in README, page.name


def test_every_flag_of_training_stands_in_usage():
    absent = [f.name for f in dataclasses.fields(Config) if f"--{f.name}`" not in PAGES["docs/usage.md"]]
    assert not absent, "name it in docs/usage.md, in the table of its group"


def test_what_may_change_on_resume_stands_in_usage():
    """As `FREE_ON_RESUME` has it, wherever that is defined."""
    paths = [path for path in MODULES.values() if "\nFREE_ON_RESUME = {" in path.read_text()]
    listed = re.search(r"FREE_ON_RESUME = \{(.*?)\}", paths[0].read_text(), flags=re.DOTALL)[1]
    rule = re.search(r"^5\. .*?^6\. ", PAGES["docs/usage.md"], flags=re.DOTALL | re.MULTILINE)[0]
    free = set(re.findall(r'^ *"(\w+)"', listed, re.MULTILINE)) - {"resume", "savepath"}
    assert set(re.findall(r"`--(\w+)`", rule)) == free


CONTRIBUTING = PAGES["docs/CONTRIBUTING.md"]
QUOTES = re.findall(
    r"^`([\w/]+\.py)`:(?:[^\n]+\n)+\n```python\n(.*?)^```", CONTRIBUTING, flags=re.DOTALL | re.MULTILINE
)


def test_three_functions_are_quoted():
    assert len(QUOTES) == len(blocks("python", CONTRIBUTING)) == 3


@pytest.mark.parametrize(("file", "code"), QUOTES)
def test_quotes_are_what_the_code_says(file, code):
    assert f"\n{code}" in (ROOT / file).read_text()


def test_moved_commands_are_there():
    """The changelog's table of commands: what a command is called now exists, and what it was called does not."""
    rows = re.findall(r"^\| `([\w/]+\.(?:py|sh))` \| `([\w/]+\.(?:py|sh))` \|$", PAGES["CHANGELOG.md"], re.MULTILINE)
    assert len(rows) >= 13
    for before, now in rows:
        assert (ROOT / now).exists() and not (ROOT / before).exists(), (before, now)
