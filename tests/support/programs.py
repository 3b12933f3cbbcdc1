"""The programs that take command lines, with what parses them."""

import evaluate_on_autoattack
import evaluate_on_gradient_free_attacks
import evaluate_on_minimum_norm
import evaluate_on_transfer as transfer
from evaluations.flags import parse_pgd
from flags import parse_train

PARSERS = {
    "train.py": parse_train,
    "evaluate_on_pgd_attacks.py": parse_pgd,
    "evaluate_on_autoattack.py": evaluate_on_autoattack.parse,
    "evaluate_on_gradient_free_attacks.py": evaluate_on_gradient_free_attacks.parse,
    "evaluate_on_minimum_norm.py": evaluate_on_minimum_norm.parse,
    "evaluate_on_transfer.py": transfer.parse,
}
