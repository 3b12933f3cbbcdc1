"""People's own networks beside ours: whose files are found, that neither harms the other, and what their errors say."""

import copy
import sys
import threading
from pathlib import Path

import pytest
import torch

import errors
import evaluate_on_pgd_attacks
import train
import utils
from command_lines import ATTACK, SMALL, fails
from errors import UserError
from hardware.precision import BFloat16Twin
from networks.build import build_model
from networks.own import code_of
from support import ROOT

SHAPE = (1, 8, 8, 3)
NET = """
import torch
class Tiny(torch.nn.Module):
    def __init__(self, channels, height, width, num_classes):
        super().__init__()
        self.linear = torch.nn.Linear(channels * height * width, num_classes)
    def forward(self, x):
        return self.linear(x.flatten(1))
"""
COLLIDING = {
    "utils.py": "WHOSE = 'theirs'\nimport config\n",
    "config.py": "from losses import WHOSE\nPRESETS = None\n",
    "losses.py": "WHOSE = 'theirs'\n",
    "errors.py": "class UserError(Exception): pass\n",
    "models.py": NET,
    "networks/__init__.py": "from .blocks import Tiny\nimport utils as helpers, networks.blocks\nfrom networks import blocks\n",
    "networks/blocks.py": "from models import Tiny\nfrom errors import UserError\n",
    "records/plain.py": "HERE = True\n",  # a folder without __init__.py
    "anpgd.py": (
        "import utils, config, losses, networks.blocks, records.plain as plain\n"
        "from networks import Tiny\n"
        "def net(*shape):\n"
        "    import utils as late\n"
        "    assert late is utils and plain.HERE\n"
        "    assert utils.WHOSE == config.WHOSE == losses.WHOSE == 'theirs'\n"
        "    return Checked(*shape)\n"
        "class Checked(Tiny):\n"
        "    def forward(self, x):\n"
        "        assert losses.WHOSE == 'theirs' and networks.blocks.Tiny is Tiny and not hasattr(utils, 'row_norms')\n"
        "        return super().forward(x)\n"
    ),
}


RAISING = """
import torch
class Net(torch.nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.linear = torch.nn.Linear(64, 10)
    def forward(self, x):
        {line}
        return self.linear(x.flatten(1))
"""


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("x -= 0.5", "line 8: RuntimeError: a leaf Variable"),
        ("return self.linear(x.flatten(1)).squeeze()", "in eval mode on 1 images"),
        ("if self.training: raise OSError('gone')", "line 8: OSError: gone"),
        ("x = x.detach()", "no gradient reaches the images"),
        (
            "if self.training: x = x / 0 * 0",
            "in train mode on 2 images that ask for a gradient (ValueError: its logits are not a number",
        ),
        ("return self.linear(x.flatten(1)), x", "it gives a tuple instead of (2, 10) logits"),
    ],
)
def test_code_that_raises_in_a_step_is_one_line_before_the_first(tmp_path, monkeypatch, capsys, line, said):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"net.py": RAISING.format(line=line)})
    short = [*SMALL, "--network", "net.py:Net", "--max_steps", "2", "--train_size", "60", "--savepath", "run"]
    fails(capsys, train.main, short, said)
    assert not (tmp_path / "run").exists()
    if "training" in line or "detach" in line:
        return  # an evaluator never trains, and says of such gradients that there are none
    torch.save({f"linear.{key}": value for key, value in torch.nn.Linear(64, 10).state_dict().items()}, "net.pt")
    named = ["--dataset", "digits", "--norm", "Linf", "--network", "net.py:Net"]
    fails(capsys, evaluate_on_pgd_attacks.main, [*ATTACK, "--model", "net.pt", *named], said)


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """A current folder of theirs, after which ours must be as before."""
    monkeypatch.chdir(tmp_path)
    modules, path = dict(sys.modules), list(sys.path)
    yield tmp_path
    left = set(sys.modules) - set(modules)
    assert not {name for name in left if str(tmp_path) in str(getattr(sys.modules[name], "__file__", ""))}
    assert all(sys.modules[name] is module for name, module in modules.items())
    assert sys.path == path and Path.cwd() == tmp_path


def works(network):
    model = build_model(network, *SHAPE)
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 3)
    return model


def test_as_a_new_user_would(theirs):
    """A file, a folder without __init__.py, a name that is no identifier, a folder of data called as a package."""
    write(theirs, {"models/resnet.py": NET, "my-net.v2.py": NET, "plain.py": NET, "torch/data.txt": ""})
    forms = "models.resnet", "models/resnet.py", f"{theirs}/models/resnet.py", "my-net.v2.py", "plain", "plain.py"
    for form in forms:
        works(f"{form}:Tiny")


@pytest.mark.parametrize("form", ["anpgd:net", "anpgd.py:net", "./anpgd.py:net"])
def test_files_called_as_ours(theirs, form):
    """Also copied, in another thread, and in bfloat16."""
    write(theirs, COLLIDING)
    model, x = works(form), torch.rand(2, 1, 8, 8)
    assert sys.modules["utils"] is utils and hasattr(utils, "row_norms") and sys.modules["errors"] is errors
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    torch.testing.assert_close(BFloat16Twin(model)(x), model(x), atol=0.05, rtol=0.05)
    found = []
    thread = threading.Thread(target=lambda: found.append(model(x)))
    thread.start()
    thread.join()
    assert torch.equal(found[0], model(x))


def test_from_elsewhere_and_beside_files_of_the_same_names_here(theirs):
    write(theirs / "there", COLLIDING)
    write(theirs, {"utils.py": "WHOSE = 'nobody'", "helpers.py": "HELP = 1", "there/two.py": "import helpers\n" + NET})
    first = works("there/anpgd.py:net")
    works("there/two.py:Tiny")  # what its folder lacks, the current one has
    write(theirs, {"other/anpgd.py": "from models import Tiny", "other/models.py": NET + "    WHERE = 'other'\n"})
    assert works("other/anpgd.py:Tiny").WHERE == "other" and not hasattr(first, "WHERE")


def test_a_file_of_a_package(theirs):
    write(
        theirs / "project",
        {
            "models/__init__.py": "from .zoo import Tiny\n",
            "models/zoo.py": (
                "from . import blocks\nfrom .blocks import Tiny\nfrom models.blocks import Tiny as Absolute\n"
                "import utils\nassert utils.MINE and Absolute is Tiny\n"
            ),
            "models/blocks.py": NET,
            "utils.py": "MINE = True",
        },
    )
    works("project/models/zoo.py:Tiny")
    works("project/models/__init__.py:Tiny")


def test_imports_by_name_added_folders_and_what_else_their_code_does(theirs):
    """What they do to sys.path, sys.modules and the current folder ends with it; ours are there where they have none."""
    write(
        theirs,
        {
            "lib/losses.py": "WHOSE = 'theirs'\n",
            "config/big.py": "SIZE = 3\n",
            "net.py": (
                "import importlib, importlib.util, os, sys\nfrom importlib import import_module\n"
                f"sys.path.insert(0, {str(theirs / 'lib')!r})\n"
                "import losses\nassert losses.WHOSE == 'theirs'\n"
                "assert importlib.import_module('config.big').SIZE == import_module('.big', 'config').SIZE == 3\n"
                "assert __import__('config.big').big.SIZE == 3 and importlib.util.find_spec('torch')\n"
                "from networks.lenet import LeNet5Madry\n"
                "sys.modules['utils'] = None\nos.chdir('/')\n" + NET
            ),
        },
    )
    works("net:Tiny")


def test_installed_packages_and_our_own_folder(theirs, monkeypatch):
    write(theirs / "site", {"installed_nets/__init__.py": "", "installed_nets/tiny.py": "import utils\n" + NET})
    monkeypatch.syspath_prepend(str(theirs / "site"))
    works("installed_nets.tiny:Tiny")
    for name in [name for name in sys.modules if name.startswith("installed_nets")]:
        del sys.modules[name]
    monkeypatch.undo()
    monkeypatch.chdir(ROOT)
    build_model("networks.lenet:LeNet5Madry", 1, 28, 28, 10)
    monkeypatch.chdir(theirs)


@pytest.mark.parametrize(
    ("files", "network", "parts"),
    [
        ({}, "nowhere.py:Tiny", ["no file nowhere.py"]),
        ({}, "nowhere:Tiny", ["No module named 'nowhere'", "path/to/file.py:callable"]),
        ({"a.py": NET}, "a.py:Tiyn", ["a.py: has no Tiyn", "did you mean Tiny?"]),
        ({"a.py": "x = 3"}, "a:x", ["a.py: x in it is no callable but 3"]),
        ({"a.py": "\nx = ("}, "a:x", ["a.py, line 2: SyntaxError"]),
        ({"a.py": "import b", "b.py": "\n\n1 / 0"}, "a.py:x", ["b.py, line 3: ZeroDivisionError"]),
        ({"a.py": "import sys\nsys.exit(3)"}, "a:x", ["a.py, line 2: SystemExit: 3"]),
        ({"a.py": "def net(*_):\n    raise KeyError('no\\nlines')"}, "a.py:net", ["a.py, line 2: KeyError"]),
        ({"a.py": "def net(*_): return 3"}, "a.py:net", ["gave a int"]),
        *(({}, name, ["names no file or module before the colon"]) for name in (":net", "..:net", "/:net")),
        (
            {"a.py": NET + "    def get_extra_state(self): return 3\n"},
            "a.py:Tiny",
            ["_extra_state, which is no tensor"],
        ),
        ({"a.py": b"\xff\xfe\x00".decode("latin1")}, "a.py:net", ["source code string cannot contain null bytes"]),
    ],
)
def test_errors_of_theirs_are_one_line(theirs, files, network, parts):
    write(theirs, files)
    for _ in range(2):  # also the second time, when halves of it could have stayed loaded
        with pytest.raises(UserError) as error:
            build_model(network, *SHAPE)
        for part in [f"--network {network}: ", *parts]:
            assert part in str(error.value), str(error.value)
        assert "_own_network_" not in str(error.value)


PACKAGE = {
    "here.py": "A = 1\n",
    "pkg/__init__.py": "from pkg.net import Tiny\n",
    "pkg/net.py": f"{NET}\nfrom pkg.deep.layers import SIGN\nfrom . import near\nimport here\n",
    "pkg/near.py": "",
    "pkg/deep/__init__.py": "",
    "pkg/deep/layers.py": "SIGN = 1\nfrom ..far import B\n",
    "pkg/far.py": "B = 1\n",
    "alone/net.py": f"{NET}\nimport here, beside\nfrom pkg.far import B\n",
    "alone/beside.py": "",
}


@pytest.mark.parametrize("network", ["pkg:Tiny", "pkg.net:Tiny", "pkg/net.py:Tiny", "alone/net.py:Tiny"])
def test_the_digest_of_a_networks_code_is_of_all_that_it_imports(theirs, network):
    write(theirs, PACKAGE)
    works(network)
    before = code_of(network)
    for name, text in PACKAGE.items():
        write(theirs, {name: f"{text}CHANGED = True\n"})
        assert (code_of(network) != before) == (network.startswith("alone") or not name.startswith("alone")), name
        write(theirs, {name: text})
    assert code_of(network) == before != ""


def test_parameters_named_as_a_wrappers(theirs):
    """Trained, gone on with, taken as a start and attacked: nothing is taken off names that are the network's own."""
    wrapped = NET.replace("self.linear", "self.module").replace("Tiny", "Wrapped")
    write(theirs, {"wrapped.py": wrapped})
    network = ["--network", "wrapped.py:Wrapped"]
    run = [*SMALL, *network, "--savepath", "run", "--max_steps"]
    assert train.main([*run, "1"]) == 0 and train.main([*run, "2", "--resume"]) == 0
    assert train.main([*SMALL, *network, "--pretrained", "run", "--savepath", "again", "--max_steps", "1"]) == 0
    assert evaluate_on_pgd_attacks.main([*ATTACK, *network, "--model", "run"]) == 0


def test_resume_says_that_the_code_has_changed(theirs, capsys):
    write(theirs, {"mine.py": "from part import Tiny\n", "part.py": NET})
    run = [*SMALL, "--network", "mine.py:Tiny", "--savepath", "run", "--resume", "--max_steps"]
    assert train.main([*run, "1"]) == train.main([*run, "2"]) == 0 and "code has changed" not in capsys.readouterr().err
    elsewhere = [str(theirs / word) if word == "mine.py:Tiny" else word for word in run]
    assert train.main([*elsewhere, "2"]) == 0, "the same file by another path"
    assert train.main([*elsewhere, "3"]) == 0
    write(theirs, {"part.py": NET.replace("self.linear(x", "-self.linear(x")})
    assert train.main([*elsewhere, "4"]) == 0
    assert "mine.py:Tiny: its code has changed since" in capsys.readouterr().err


@pytest.mark.slow
def test_train_and_attack_from_a_folder_of_colliding_names(theirs, command):
    """The programs themselves, started where the user's files are."""
    write(theirs, COLLIDING)
    data = ["--dataset", "digits", "--norm", "Linf", "--hinge_maxeps", "0.3", "--device", "cpu", "--train_size", "60"]
    sizes = ["--val_size", "20", "--test_size", "0", "--max_steps", "1", "--nb_iter", "1"]
    status, _, error = command("train.py", *data, *sizes, "--network", "anpgd:net", "--savepath", "run")
    assert status == 0, error
    attack = ["--model", "run", "--nb_iter", "2", "--nb_restart", "1", "--test_size", "20", "--device", "cpu"]
    status, _, error = command("evaluate_on_pgd_attacks.py", *attack, "--network", str(theirs / "anpgd.py:net"))
    assert status == 0, error
