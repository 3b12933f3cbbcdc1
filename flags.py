"""The command lines of the programs, made from the fields of `Config` and of the evaluations' records: text -> values.

:raises UserError: for every mistake, in one line.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import itertools
import math
import sys
import types
import typing
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from config import ALPHA, BY_IMAGES, DATASETS, LARGEST, MOST_DIGITS, NORMS, PRESETS, Config, Schedule, method_of
from errors import UserError, exits_on_user_error
from presets import MARGIN, MMA_ONLY, TRIED, TURNED_OFF, USES, derived_lengths, recipe_values
from records.reading import read_settings
from validation import RADII, radius, validate


def number(text: str) -> float:
    """`0.3` or `8/255`, finite."""
    try:
        value = float(Fraction(text)) if "/" in text else float(text)
    except (ValueError, ZeroDivisionError, OverflowError):
        value = math.nan
    if not abs(value) <= LARGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number; write 0.3 or 8/255")
    return value


def schedule(text: str) -> Schedule:
    """`1e-4`, or `0:0.3,20000:0.09`: learning rate from each step on; the first step is 0."""
    try:
        pairs = [part.split(":") for part in (text if ":" in text else f"0:{text}").split(",")]
        steps = tuple((int(step), number(rate)) for step, rate in pairs)
    except (ValueError, argparse.ArgumentTypeError):
        steps = ()
    if not steps or steps[0][0] != 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a schedule; write 1e-4 or 0:0.3,20000:0.09")
    return steps


def whole(text: str) -> int:
    """A whole number >= 0."""
    if not text.isascii() or not text.isdigit() or len(text) > MOST_DIGITS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on; write for example 10")
    return int(text)


def words(text: str) -> str:
    """Text that can be the name of a file."""
    if not text:
        raise argparse.ArgumentTypeError("is empty: give a value, or leave it out")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        raise argparse.ArgumentTypeError(f"{text!r} holds control characters or broken ones; leave them out")
    return text


def spelled(choices: Sequence[str]) -> typing.Callable[[str], str]:
    """A parser of one of the choices, in capitals or not, with dashes or without: `l-inf` is Linf."""

    def plain(text: str) -> str:
        return text.lower().replace("-", "").replace("_", "")

    return lambda text: next((choice for choice in choices if plain(choice) == plain(text)), text)


Radii = tuple[float, ...]
PARSERS: dict[typing.Any, typing.Callable[[str], typing.Any]] = {
    float: number,
    int: whole,
    Schedule: schedule,
    Radii: lambda text: text if text == "grid" else number(text),
    str: words,
}


Flags = dict[str, typing.Any]  # by field name
CONFIG = "TOML file of flags (train.py: also a run folder, for the same again); flags beside it win"

# What `--help` shows together; the rest is the last group.
GROUPS = {
    "needed": "model dataset norm hinge_maxeps",
    "data": "data_root split image_size streaming num_workers train_size val_size test_size augment crop_pad flip",
    "method": "network standardise recipe method clean_loss_coeff train_eps ramp_steps trades_beta "
    "clean_loss_fn margin_loss_fn search_loss_fn search search_mode num_search_steps rest_interval pretrained",
    "attack": "attacks protocol eps eps_iter nb_iter nb_restart steps attack_loss_fn eps_iter_scale attack_mineps keep_directions "
    "refresh_interval step_decay odi_steps square_queries spsa_iter spsa_samples",
    "optimisation": "optimizer lr one_cycle cycle_steps momentum weight_decay batch_size max_steps local_bn",
    "check": "test_eps test_eps_iter check_nb_iter check_interval check_size best_by test_at_end eval_batch_size",
    "run": "seed device deterministic precision cuda_graphs savepath resume save_interval disp_interval quiet "
    "tensorboard save_adv overwrite",
}


def suggested(word: str, known: Iterable[str], otherwise: str = "see --help") -> str:
    """The known word that is nearest, if any is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]}?" if near else otherwise


class Parser(argparse.ArgumentParser):
    """One line for every mistake, with a suggestion where a flag is misspelt."""

    def error(self, message: str) -> typing.NoReturn:
        raise UserError(message if ": " in message else f"{message}: see --help")

    def _check_value(self, action: argparse.Action, value: typing.Any) -> None:
        """argparse's refusal of what is none of the choices, with a suggestion."""
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            near = suggested(str(value), map(str, action.choices or ()), "")
            raise argparse.ArgumentError(action, error.message + (near and f": {near}")) from None

    def parse(self, argv: Sequence[str] | None) -> Flags:
        """The flags that were given, by field name; single-valued flags given twice: the last one counts."""
        given, unknown = self.parse_known_args(argv)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            raise UserError(f"unknown argument {unknown[0]}: {suggested(unknown[0].split('=')[0], flags)}")
        for action in self._actions:
            if action.option_strings and getattr(given, action.dest, None) == []:  # argparse drops that of --flag=--
                self.error(f"{action.option_strings[0]}: a value is missing")
        return {name: _at_home(value) for name, value in vars(given).items()}

    def parse_with_file(
        self,
        argv: Sequence[str] | None,
        kept: typing.Callable[[Flags, Flags, bool], Flags] = lambda file, flags, of_run: file,
    ) -> Flags:
        """What the command line says, and the file of `--config` where it says nothing. kept: what of that file counts
        beside the flags; of_run: a run wrote it, with all of its settings."""
        given = self.parse(argv)
        name = given.pop("config", None)
        if name is None:
            return given
        return kept(self.parse_file(name), given, Path(name).is_dir() or Path(name).suffix == ".json") | given

    def parse_file(self, name: str) -> Flags:
        """The flags in a TOML file, a config.json or its run folder, by field name.

        :raises UserError: if it cannot be read, or holds what no flag could say.
        """
        own = {a.dest: a for a in self._actions if a.option_strings and a.dest not in ("help", "config")}
        argv = []
        for key, value in read_settings(name).items():
            if key not in own:
                raise UserError(f"--config {name}: unknown name {key}: {suggested(key, own)}")
            if isinstance(own[key], argparse.BooleanOptionalAction) != isinstance(value, bool):
                raise UserError(f"--config {name}: {key} = {value!r}: true and false are for switches: see --help")
            if isinstance(value, bool):
                argv.append(f"--{'' if value else 'no-'}{key}")
            elif own[key].nargs == "+" and isinstance(value, list):
                argv += [f"--{key}", *map(as_typed, value)]
            else:
                argv.append(f"--{key}={as_typed(value)}")
        try:
            return {key: value for key, value in self.parse(argv).items() if key in own}
        except UserError as error:
            raise UserError(f"--config {name}: {error}") from None


def _at_home(value: typing.Any) -> typing.Any:
    """`~` at the front of a path, which a shell leaves in `--flag=~/data`."""
    if isinstance(value, list):
        return [_at_home(part) for part in value]
    if isinstance(value, str) and value.startswith("~"):
        with suppress(RuntimeError):  # ~somebody, who is not known here
            return str(Path(value).expanduser())
    return value


def as_typed(value: object) -> str:
    """As it would be typed: [[0, 0.3], [20000, 0.09]] is a schedule."""
    if isinstance(value, list | tuple) and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in value):
        return ",".join(f"{step}:{rate}" for step, rate in value)
    return str(value)


def build_parser(
    cls: type, description: str, default_text: str, needed: tuple[str, str], shown: Config | None = None
) -> Parser:
    """An argument parser with one flag for each field of the dataclass `cls`. needed: what every call has, in words and in an
    example. shown: whose values are the defaults."""
    words_of, example = needed
    usage = f"%(prog)s {words_of} [--FLAG VALUE ...]"
    parser = Parser(usage=usage, description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.epilog = f"example: python {parser.prog} {example}"
    parser.add_argument("--config", metavar="FILE", type=words, help=CONFIG)
    groups: Flags = {}
    fields = {f.name for f in dataclasses.fields(cls)}
    for title, names in GROUPS.items():
        if own := fields.intersection(names.split()):
            groups |= dict.fromkeys(own, parser.add_argument_group(title))
    hints = typing.get_type_hints(cls)
    flagged = (f for f in dataclasses.fields(cls) if f.metadata["flag"])
    for f in sorted(flagged, key=lambda f: f.name != "model"):
        kind, meta = hints[f.name], dict(f.metadata)
        if typing.get_origin(kind) in (types.UnionType, typing.Union):
            kind = next(a for a in typing.get_args(kind) if a is not type(None))
        default, text = getattr(shown, f.name, f.default), meta["help"]
        if default not in (None, "") and "default" not in text and f.name not in ("dataset", "norm"):
            value = f"{default:.4g}" if isinstance(default, float) else as_typed(default)
            text += f" ({default_text}{value})"
        group = groups.get(f.name, parser)
        if kind is bool:
            group.add_argument(f"--{f.name}", action=argparse.BooleanOptionalAction, help=text)
        else:
            group.add_argument(
                f"--{f.name}",
                type=spelled(meta["choices"]) if meta["choices"] else PARSERS[kind],
                choices=meta["choices"],
                help=text,
                nargs="+" if kind == Radii else None,
                metavar=None if meta["choices"] else f.name.split("_")[-1].upper(),
            )
    return parser


def answers_help(program: str, parse: typing.Callable[[], object]) -> None:
    """In the program itself (its `__name__`), answer `--help` at once: to import torch and attacks takes seconds."""
    if program == "__main__" and {"-h", "--help"} & set(sys.argv):
        exits_on_user_error(lambda: bool(parse()))()


def parse_train(argv: Sequence[str] | None = None) -> tuple[Config, list[str]]:
    """Training flags on top of the preset of their data set and norm, and what the user should be told.

    :raises UserError: for a wrong flag or value.
    """
    argv = sys.argv[1:] if argv is None else argv
    named = dict(itertools.pairwise(part for argument in argv for part in argument.split("=", 1)))
    shown = PRESETS.get((named.get("--dataset", ""), named.get("--norm", "")))  # by --help
    of = f"{shown.dataset} {shown.norm}: " if shown else "MNIST Linf: "
    needed = "--dataset NAME --norm NORM --hinge_maxeps RADIUS", "--dataset digits --norm Linf --hinge_maxeps 0.3"
    parser = build_parser(Config, "Train a network with MMA (Ding et al., ICLR 2020).", of, needed, shown)
    given = parser.parse_with_file(argv, _what_counts)
    if missing := {f"--{name}": of for name, of in (("dataset", DATASETS), ("norm", NORMS)) if name not in given}:
        choices = "; ".join(f"one of {', '.join(of)}" for of in missing.values())
        raise UserError(f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing: choose {choices}")
    preset = PRESETS[given["dataset"], given["norm"]]
    given.setdefault("method", method_of(given.get("clean_loss_coeff", preset.clean_loss_coeff)))
    recipe, notes = _recipe(given)
    for name in (name for name in RADII if name in given):
        given[name], note = radius(given[name], preset.dataset, preset.norm, name)
        notes += note
    by_images = tuple(name for name in BY_IMAGES if _follow_from_images(given) and name not in given)
    config = _completed(replace(preset, **recipe, **given, by_images=by_images), given)
    validate(config)
    return config, notes


def _what_counts(file: Flags, flags: Flags, of_run: bool) -> Flags:
    """Of a file's settings those that say something beside the flags: not what belonged to another method, or to what the flags
    turn off; of a run's also not what preset and recipe say anyway, or what follows from other settings."""
    dropped = _usual(file, flags) if of_run else set()
    if "method" in flags:
        dropped |= {name for name, methods in USES.items() if flags["method"] not in methods}
        dropped |= set() if flags["method"] in MARGIN else set(MMA_ONLY)
    if _search(file) != _search(file | flags):
        dropped.add("num_search_steps")  # passes of a secant search, halvings of a bisection
    dropped |= {name for (switch, value), names in TURNED_OFF.items() if flags.get(switch) == value for name in names}
    if "method" in flags or "clean_loss_coeff" in flags:
        dropped |= {"clean_loss_coeff", "method"}
    return {name: value for name, value in file.items() if name not in dropped}


def _search(given: Flags) -> str:
    return str(given.get("search", "bisection" if given.get("recipe", "paper") == "paper" else "secant"))


def _usual(file: Flags, flags: Flags) -> set[str]:
    """Settings of a run that its preset, recipe and other settings give."""
    key = file.get("dataset", ""), file.get("norm", "")
    usual = PRESETS.get(key)
    names: set[str] = set()
    if usual is not None:
        recipe: Flags = recipe_values(file.get("recipe"), key, file.get("method"), file.get("network"))
        usual = replace(usual, **recipe)
        names = {name for name, value in file.items() if value == getattr(usual, name)} - {"dataset", "norm"}
    lengths = derived_lengths(file.get("max_steps", usual.max_steps if usual else 0))
    names |= {name for name, value in lengths.items() if file.get(name) == value}
    # another number of images would give others
    return names - set(BY_IMAGES) if _follow_from_images(file | flags) else names


def _follow_from_images(given: Flags) -> bool:
    """Whether the settings `BY_IMAGES` follow from the number of training images where they are not given."""
    return given.get("dataset") == "imagefolder" and given.get("recipe", "paper") == "paper"


def _recipe(given: Flags) -> tuple[Flags, list[str]]:
    """What `--recipe` adds to the preset, less what is given, and what the user should be told of it."""
    recipe, key, network = given.get("recipe", "paper"), (given["dataset"], given["norm"]), given.get("network")
    values, notes = recipe_values(recipe, key, given["method"], network), []
    left_out = [name for name in recipe_values(recipe, key, None, network) if name not in values]
    if not given.get("keep_directions", True):
        values.pop("refresh_interval", None)  # without them every start is a fresh one
    if given.get("search") == "bisection":
        values.pop("num_search_steps", None)  # the recipe's are passes of the secant search
    if recipe != "paper" and values and (recipe, *key, network or PRESETS[key].network) not in TRIED:
        what = " ".join([*key, *([f"--network {network}"] if network else [])])
        notes.append(f"--recipe {recipe}: was never tried with {what}; its figures elsewhere promise nothing here")
    if left_out:
        notes.append(f"--recipe {recipe}: no meaning with --method {given['method']}, left out: {', '.join(left_out)}")
    return {name: value for name, value in values.items() if name not in given}, notes


def _completed(config: Config, given: Flags) -> Config:
    """`config` with what follows from other settings: the weight alpha of its method, the lengths of ramp and cycle.

    :raises UserError: if a flag in `given` has no meaning for the method.
    """
    for name, methods in USES.items():
        if name in given and config.method not in methods:
            raise UserError(
                f"--{name}: has no meaning with --method {config.method}, only with {', '.join(methods)}: leave it out"
            )
    if "momentum" in given and config.optimizer == "adam":
        raise UserError("--momentum: has no meaning with --optimizer adam, only with sgd: leave it out")
    lengths, follows = derived_lengths(config.max_steps), Flags()
    if config.method == "pgdls" and config.ramp_steps is None:
        follows["ramp_steps"] = lengths["ramp_steps"]
    if config.one_cycle and "lr" not in given:  # the published rates fall by steps
        follows["lr"] = ((0, max(rate for _, rate in config.lr)),)
    if config.one_cycle and config.cycle_steps is None:
        follows["cycle_steps"] = lengths["cycle_steps"]
    if config.method in ALPHA and "clean_loss_coeff" not in given:
        follows["clean_loss_coeff"] = ALPHA[config.method]
    return replace(config, **follows)
