"""The command `memvit`: a thin layer over the library, its options made of signatures and docstrings."""

from __future__ import annotations

import inspect
import io
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin, get_type_hints

from docstring_parser import parse as parse_docstring
from jsonargparse import ArgumentParser, DefaultHelpFormatter

import memvit
from memvit.commands.benchmark import benchmark
from memvit.commands.completion import completion
from memvit.commands.convert import convert
from memvit.commands.cost import cost
from memvit.commands.data import check, make
from memvit.commands.demo import demo
from memvit.commands.detect import detect
from memvit.commands.doctor import doctor
from memvit.commands.evaluate import ava, epic
from memvit.commands.info import info
from memvit.commands.list_models import models
from memvit.commands.predict import predict
from memvit.commands.push import push
from memvit.commands.report import report
from memvit.commands.serve import serve
from memvit.commands.terminal import log_to, reason, say, stderr_console

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Group:
    """Commands that share their first word."""

    summary: str
    commands: dict[str, Callable[..., int]]


COMMANDS: dict[str, Callable[..., int] | Group] = {
    "predict": predict,
    "detect": detect,
    "report": report,
    "serve": serve,
    "models": models,
    "info": info,
    "cost": cost,
    "benchmark": benchmark,
    "convert": convert,
    "push": push,
    "doctor": doctor,
    "completion": completion,
    "demo": demo,
    "data": Group("Check your annotated videos, or make some to try things with.", {"check": check, "make": make}),
    "evaluate": Group("Measure predictions in files, by the definitions of a benchmark.", {"ava": ava, "epic": epic}),
}

# Lightning makes their parsers, in memvit.training.cli.
TRAINING_COMMANDS = {
    "fit": "Train a model on videos with annotations.",
    "validate": "Measure a model on the videos that training validates with.",
    "test": "Measure a model on the test videos and write its predictions.",
}

# Their parsers know no examples.
TRAINING_EXAMPLES = {
    "fit": (
        "memvit fit --config configs/my_videos.yaml",
        "memvit fit --config configs/my_videos.yaml --ckpt_path last",
    ),
    "validate": ("memvit validate --config configs/my_videos.yaml --ckpt_path best",),
    "test": ("memvit test --config configs/my_videos.yaml --ckpt_path best",),
}
TRAINING_OPTIONS = ("config", "ckpt_path", "run.name", "run.directory", "model.weights", "print_config")
GENERAL_EXAMPLES = ("memvit doctor", "memvit predict kitchen.mp4 --model memvit_16x4.k400 --overlay")

INTERRUPTED = 130


class HelpFormatter(DefaultHelpFormatter):
    """Wraps descriptions and leaves the lines of examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith(EXAMPLES) else super()._fill_text(text, width, indent)


EXAMPLES = "Examples:\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: the arguments; the process's own where None.

    Returns:
        The exit code: 0 for success, 1 for anything that went wrong, 130 if the user interrupted it.

    Raises:
        SystemExit: for --help, --version and (code 2) arguments that cannot be understood.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: a name that cannot be shown is no reason to fail
    if arguments and arguments[0] in TRAINING_COMMANDS:
        return _guarded(lambda: _train(arguments), debug="--debug" in arguments)
    parsed = build_parser(arguments[0] if arguments else None).parse_args(arguments)
    command, options = COMMANDS[parsed.subcommand], parsed[parsed.subcommand]
    if isinstance(command, Group):
        command, options = command.commands[options.subcommand], options[options.subcommand]
    debug = options.pop("debug")
    return _guarded(lambda: command(**vars(options)), debug)


def _guarded(command: Callable[[], int], debug: bool) -> int:
    """Runs a command; what goes wrong becomes one line and an exit code."""
    debug = debug or os.environ.get("MEMVIT_DEBUG", "0") not in ("", "0")
    console = stderr_console()
    with log_to(console, debug):
        try:
            return command()
        except KeyboardInterrupt:
            say(console, "interrupted", "yellow")
            return INTERRUPTED
        except BrokenPipeError:  # whoever read our output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except Exception as error:
            say(console, f"error: {reason(error)}", "red")
            logger.debug("where it comes from", exc_info=error)
            return 1


def _train(arguments: list[str]) -> int:
    from memvit.training.cli import run  # Lightning and PyTorch, which no other command's help shall wait for

    try:
        return run(arguments, stderr_console())
    except SystemExit as stopped:
        if not stopped.code and arguments[1:] in (["--help"], ["-h"]):
            print(f"\n{_examples(TRAINING_EXAMPLES[arguments[0]])}")
        raise


def build_parser(only: str | None = None) -> ArgumentParser:
    """The parser of all subcommands.

    Args:
        only: the one that will be parsed: the others get their names alone, which takes a fifth of the time. All of them where
            it is no subcommand.
    """
    description = "Recognise what happens in long videos, online, with a memory of what came before."
    parser = ArgumentParser(
        prog="memvit",
        description=description,
        version=memvit.__version__,
        formatter_class=HelpFormatter,
        epilog=_examples(GENERAL_EXAMPLES),
    )
    subcommands = _add_commands(parser, COMMANDS, only if only in COMMANDS else None)
    for name, summary in TRAINING_COMMANDS.items():
        training = ArgumentParser(description=summary)
        for option in TRAINING_OPTIONS:  # for shells to complete; Lightning's parser knows all
            training.add_argument(f"--{option}", type=str)
        subcommands.add_subcommand(name, training, help=summary)
    return parser


def _examples(lines: Iterable[str]) -> str:
    return EXAMPLES + "\n".join(f"  {line}" for line in lines)


def _add_commands(
    parser: ArgumentParser, commands: Mapping[str, Callable[..., int] | Group], only: str | None = None
) -> Any:
    """Gives a parser its subcommands; returns what more can be added to."""
    subcommands = parser.add_subcommands(required=True, dest="subcommand")
    for name, command in commands.items():
        if only is not None and name != only:
            subcommands.add_subcommand(name, ArgumentParser())
        elif isinstance(command, Group):
            lines = [line for inner in command.commands.values() for line in _examples_of(inner)[:1]]
            group = ArgumentParser(
                description=command.summary, formatter_class=HelpFormatter, epilog=_examples(lines) if lines else None
            )
            subcommands.add_subcommand(name, group, help=command.summary)
            _add_commands(group, command.commands)  # jsonargparse takes inner commands after the outer one only
        else:
            documentation = parse_docstring(command.__doc__ or "")
            subcommands.add_subcommand(name, _parser_of(command), help=documentation.short_description)
    return subcommands


def _parser_of(function: Callable[..., int]) -> ArgumentParser:
    """The parser of one subcommand.

    Positional parameters are positional arguments. Of the others, `bool` is a switch and a list takes several values;
    jsonargparse knows the rest.
    """
    documentation = parse_docstring(function.__doc__ or "")
    help_of = {parameter.arg_name: parameter.description for parameter in documentation.params}
    about = (documentation.short_description, documentation.long_description)
    examples = _examples_of(function)
    parser = ArgumentParser(
        description=" ".join(text.replace("\n", " ") for text in about if text),
        formatter_class=HelpFormatter,
        epilog=_examples(examples) if examples else None,
    )
    hints = get_type_hints(function)
    done: set[str | int] = set()
    for name, parameter in inspect.signature(function).parameters.items():
        item = _list_item(hints[name])
        options: dict[str, Any] = {"help": help_of.get(name)}
        if parameter.kind is not parameter.KEYWORD_ONLY:
            optional = {} if parameter.default is parameter.empty else {"nargs": "?", "default": parameter.default}
            options |= {"type": item or hints[name], **({"nargs": "+"} if item else optional)}
            metavar = name.removesuffix("s") if item else name
            parser.add_argument(name, metavar=metavar.upper(), **options)
        elif hints[name] is bool:
            parser.add_argument(f"--{name}", action="store_true", **options)
        elif name == "output":
            parser.add_argument("-o", f"--{name}", type=hints[name], default=parameter.default, **options)
        elif item is not None:
            parser.add_argument(f"--{name}", nargs="+", type=item, default=parameter.default, **options)
        else:
            continue
        done.add(name)
    parser.add_function_arguments(function, as_group=False, skip=done)
    parser.add_argument("--debug", action="store_true", help="show tracebacks and what the library logs")
    return parser


def _examples_of(function: Callable[..., int]) -> list[str]:
    """The lines under "Examples:" in a command's docstring."""
    found = parse_docstring(function.__doc__ or "").examples
    return [line.strip() for example in found for line in (example.description or "").splitlines() if line.strip()]


def _list_item(hint: Any) -> Any:
    """`str` of `list[str]` and `list[str] | None`; None of what is no list."""
    for option in (hint, *get_args(hint)):
        if get_origin(option) is list:
            return get_args(option)[0]
    return None


if __name__ == "__main__":
    sys.exit(main())
