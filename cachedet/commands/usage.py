"""Wrong usage in our words: what other tools, and other verbs of ours, call a thing."""

from __future__ import annotations

import re
import sys
from typing import Any

from cachedet.progress import tell

_NUMBERS = {
    "Input should be a valid integer.*": "expected a whole number",
    "Input should be a valid number.*": "expected a number",
    "Input should be greater than or equal to": "expected at least",
    "Input should be less than or equal to": "expected at most",
}
OTHER_VERBS = {  # of other tools
    "detect": "predict", "infer": "predict", "test": "eval", "val": "eval", "validate": "eval",
    "evaluate": "eval", "score": "eval", "train": "train-heads", "fit": "train-heads",
    "cache": "extract", "features": "extract", "tune": "sweep", "search": "sweep",
    "benchmark": "compare", "plan": "estimate", "summary": "model",
}  # fmt: skip
OTHER_OPTIONS = {  # of other tools and of other verbs; for one verb alone with its name
    "store": ("train",), "train_store": ("train",), "val_store": ("val",),
    "out": ("run", "store"), "output": ("out", "run", "store"), "output_dir": ("out", "run"),
    "project": ("run",), "checkpoint": ("init_from",), "pretrained": ("weights", "init_from"),
    "model": ("backbone",), "imgsz": ("image_size",), "size": ("image_size",),
    "labels": ("annotations",), "data": ("train", "images"), "conf": ("min_score",),
    "score": ("min_score",), "threshold": ("min_score",), "score_threshold": ("min_score",),
    "eval val": ("store",), "eval train": ("store",), "eval data": ("store",),
    "predict source": ("images",), "predict input": ("images",), "save_dir": ("out", "run"),
    "name": ("run",), "save": ("out",),
}  # fmt: skip


def tell_usage(error: Any) -> None:
    """What was wrong, on one line however long: typer's own frame breaks and cuts paths."""
    message = error.format_message()
    if not message:  # of a group without a command: its help has been shown
        return
    context = getattr(error, "ctx", None)
    if context is not None:
        tell(" ".join(context.get_usage().split()))
        tell(f"Try '{context.command_path} --help' for help.")
    tell(f"error: {_hint(error, context) or _plain(message)}")


def _plain(message: str) -> str:
    """Typer's words for a number, and for a verb of other tools, in ours."""
    if (unknown := re.match("No such command '(.*?)'", message)) and unknown[1] in OTHER_VERBS:
        return f"No such command '{unknown[1]}'; it is `cachedet {OTHER_VERBS[unknown[1]]}`"
    if message.startswith("Got unexpected extra argument") and "--set" in sys.argv:
        return f"{message}; a key of the config is set as --set key=value, without a space"
    for theirs, ours in _NUMBERS.items():
        message = re.sub(theirs, ours, message)
    return message


def _hint(error: Any, context: Any) -> str:
    """What an unknown option is here: an argument, another option or a key of the config."""
    written = str(getattr(error, "option_name", ""))
    name = written.removeprefix("--").replace("-", "_")
    if not written or context is None:
        return ""
    params = context.command.params
    options = {option for param in params for option in param.opts}
    arguments = [param.name for param in params if param.param_type_name == "argument"]
    of_command = OTHER_OPTIONS.get(f"{context.info_name} {name}", ())
    meant = of_command or OTHER_OPTIONS.get(name, ())
    others = [f"--{each.replace('_', '-')}" for each in meant]
    if name in arguments or {*of_command} & {*arguments}:
        usual = " ".join(argument.upper() for argument in arguments)
        known = f"give it without the option's name: `{context.command_path} {usual}`"
    elif here := [other for other in others if other in options]:
        known = f"here it is {here[0]}"
    elif "--set" in options and (keys := _keys_named(name)):
        known = f"it is a key of the config: --set {' or '.join(keys[:3])}=..."
    else:
        return ""
    return f"No such option: {written}; {known}"


def _keys_named(name: str) -> list[str]:
    from cachedet.config.problems import keys_named  # `--help` stays quick
    from cachedet.config.run import TrainConfig

    return keys_named(name, TrainConfig)
