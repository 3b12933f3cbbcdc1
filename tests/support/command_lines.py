"""Command lines called in this process, and what they leave."""

import json
import shlex

SMALL = shlex.split(
    "--dataset digits --norm Linf --hinge_maxeps 0.3 --device cpu --train_size 200 --val_size 30 --test_size 20 --nb_iter 3 --disp_interval 2"
)


ATTACK = ["--device", "cpu", "--nb_iter", "5", "--nb_restart", "2", "--test_size", "60"]


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def rows(folder, without_speed=True):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if not (without_speed and k == "steps_per_second")} for r in found]


def fails(capsys, main, argv, *parts):
    """Status 2 and one line that holds every part."""
    capsys.readouterr()
    assert main([str(a) for a in argv]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "%|" not in line and line.strip()]
    error = lines[-1]  # beside a progress bar, if it had got that far
    assert error.startswith("error: ") and len(lines) == 1, lines
    for part in parts:
        assert str(part) in error


def found_in(folder, attack="pgd", norm="Linf"):
    """The rows of a JSON without how long and in what portions each took."""
    content = json.loads((folder / f"eval_{attack}_{norm}.json").read_text())
    portions = ("device", "processes", "batch_size", "batch_size_asked")
    return [
        {**row, "seconds": None, "settings": {k: v for k, v in row["settings"].items() if k not in portions}}
        for row in content["results"]
    ]
