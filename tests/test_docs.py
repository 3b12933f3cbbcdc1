"""Every command in the docs parses, every link leads somewhere, Python snippets run, what is named is there."""

import json
import re
import runpy
import shlex
import sys

import pytest
import torch

from programs import parses
from support import ROOT

README = (ROOT / "README.md").read_text()
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
}
HAND_ON = {"train_with_slurm.sh": "train.py"}  # shell scripts whose own arguments reach a program of ours as they are
PROGRAMS = sorted(
    str(path.relative_to(ROOT))
    for folder in ("benchmarks", "reports", "scripts")
    for path in (ROOT / folder).glob("*.py")
    if '__name__ == "__main__"' in path.read_text()
)


def blocks(language, text=README):
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def without_blocks(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def program_lines(text):
    """(program, arguments) of each line of a shell block that starts a file of ours; what else it does is left out."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        line = re.sub(r"^(?:timeout (?:-s \w+ )?\w+ |\w+=\S+ )*", "", line.split(" #")[0].split(" && ")[-1].strip())
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


@pytest.mark.parametrize(("program", "argv"), WRITTEN)
def test_commands_in_the_docs_parse(program, argv, monkeypatch):
    path = ROOT / program
    assert path.exists(), program
    if path.suffix == ".py" or path.name in HAND_ON:
        parses(HAND_ON.get(path.name, program), argv, monkeypatch)
    else:
        assert not argv or "$@" in path.read_text() or "$1" in path.read_text()


def test_most_pages_hold_commands():
    assert len(WRITTEN) >= 40
    with pytest.raises((AssertionError, SystemExit)):
        parses("benchmarks/benchmark.py", ["--no_such_flag", "1"], pytest.MonkeyPatch())


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_answers_help(program, capsys, monkeypatch):
    """And does nothing else; on a path that holds only what its first lines put there."""
    ours = [str(ROOT / folder) for folder in (".", "tests/support", "tests/processes")]
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ours])
    monkeypatch.setattr(sys, "argv", [program, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / program), run_name="__main__")
    assert ended.value.code == 0 and capsys.readouterr().out.startswith("usage: ")


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_is_there(page):
    """Each `scripts/x.sh`, `reports/x.py`, … in text, tables and blocks, each link and its heading, each committed run."""
    text = PAGES[page]
    if page != "CHANGELOG.md":  # it names what was, as what is cited by a commit does
        now = re.sub(r"\b[0-9a-f]{7}:\S+", "", text)
        folders = "scripts|reports|benchmarks|evaluations|tests|docs"
        for path in re.findall(rf"(?<![\w/.…])((?:{folders})/[\w/]+\.(?:sh|py|md|json))", now):
            assert (ROOT / path).exists(), path
        for name in re.findall(r"`(test_\w+\.py)`", now):
            assert list((ROOT / "tests").rglob(name)), name
    for target in re.findall(r"\]\(([^)]+)\)", without_blocks(text)):
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert target.startswith("http") or file.exists(), target
        assert not anchor or target.startswith("http") or anchor in anchors(file.read_text()), target
    if page in ("README.md", "docs/usage.md", "docs/evaluation.md"):
        lines = [line for block in blocks("bash", text) for line in block.splitlines()]
        named = [(name, line) for line in lines for name in re.findall(r"(?<!into )trained_models/[\w.*-]+", line)]
        for name, line in named:
            assert list(ROOT.glob(name)) or "once scripts/" in line, name


def anchors(text):
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


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
    """Those of CONTRIBUTING are quotes, which are what the code says."""
    monkeypatch.chdir(ROOT)  # they name the clone as "."
    for code in blocks("python", PAGES[page]):
        if page == "docs/CONTRIBUTING.md":
            (file,) = re.findall(rf"^`([\w/]+\.py)`:[^`]*\n```python\n{re.escape(code)}", PAGES[page], re.MULTILINE)
            assert f"\n{code}" in (ROOT / file).read_text()
        else:
            exec(compile(code, page, "exec"), {})


def test_the_schema_is_that_of_the_committed_results():
    jsonschema = pytest.importorskip("jsonschema")
    (schema,) = map(json.loads, blocks("json", PAGES["docs/evaluation.md"]))
    contents = [json.loads(path.read_text()) for path in ROOT.glob("trained_models/*/eval_*.json")]
    assert {"flags", "distances"} <= {key for content in contents for row in content["results"] for key in row}
    for content in contents:
        jsonschema.validate(content, schema)
    for wrong in ({"flags": "01x"}, {"distances": [-1.0]}, {"distances": [0.5], "flags": "1", "eps": 0.1}, {}):
        row = {"n": 1, "split": "test", "seed": 0, "clean_acc": 1.0, "settings": {}, **wrong}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(contents[0] | {"results": [row]}, schema)


def test_the_frame_holds_each_image(monkeypatch):
    monkeypatch.chdir(ROOT)
    (code,) = [code for code in blocks("python", PAGES["docs/evaluation.md"]) if "pandas" in code]
    exec(code, names := {})
    for path in ROOT.glob("trained_models/mnist-L2-MMA-2.0-sd0-fast/eval_*.json"):
        content = json.loads(path.read_text())
        for row in content["results"]:
            column = names["frame"][content["attack"]].xs(row["n"], axis=1, level=1)
            found = column.loc[:, column.columns == row["eps"] if "eps" in row else column.columns.isna()].iloc[:, -1]
            known = row.get("distances") or [flag == "1" for flag in row["flags"]]
            assert found.dropna().tolist() == [value for value in known if value is not None]


def test_readme_is_short_and_every_page_is_linked():
    assert len(README.splitlines()) <= 130 and len(README.split()) <= 1000
    for page in (ROOT / "docs").glob("*.md"):
        assert f"](docs/{page.name})" in README or f"]({page.name})" in PAGES["docs/results.md"], page.name
