"""Round the weights of a run's model_best.pt to float16, before they are evaluated and committed: half the size.

python scripts/round_weights.py RUN RUN ...

Weights are still loaded and used as float32; what changes is their value, once. BatchNorm's buffers stay float32. A file that
is rounded already is left as it is; one that evaluations lie beside is refused, as they are of the other weights.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from errors import UserError, exits_on_user_error
from flags import Parser
from records import checkpoint


def rounded(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict with its float32 weights in float16, BatchNorm's statistics as they are.

    :raises UserError: if one does not fit: float16 ends at 65504.
    """
    found = {}
    for name, value in weights.items():
        is_weight = value.dtype == torch.float32 and not name.endswith(("running_mean", "running_var"))
        found[name] = value.half() if is_weight else value
        if not found[name].isfinite().all():
            raise UserError(f"{name}: a weight is beyond float16's range: keep this network in float32")
    return found


@exits_on_user_error
def main(argv: list[str] | None = None) -> int:
    """Round each run's file in place. Returns the exit status."""
    parser = Parser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder")
    for run in map(Path, parser.parse(argv)["runs"]):
        path = run / "model_best.pt"
        content = checkpoint.load(path, needed={"model": dict})
        weights = rounded(content["model"])
        if all(weights[name].dtype == value.dtype for name, value in content["model"].items()):
            print(f"{path}: rounded already")
            continue
        if beside := sorted(file.name for file in run.glob("eval_*.json")):
            raise UserError(f"{path}: {beside[0]} beside it is of the weights as they are: move it away first")
        checkpoint.save(path, {**content, "model": weights})
        print(f"{path}: {path.stat().st_size / 2**20:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
