"""The options of commands that take settings, made from the table in `core.settings`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from luxfuse.configuration.sources import parse_pairs
from luxfuse.core.settings import SETTINGS, Setting

Command = Callable[..., int]

MountOptions = Annotated[
    list[str] | None, typer.Option("-o", metavar="NAME=VALUE,...", help="Settings as in /etc/fstab; the other flags win.")
]
ConfigFile = Annotated[
    str | None, typer.Option("--config", metavar="FILE", help="Settings as TOML; flags and LUXFUSE_* win.")
]


def with_settings(*, attachable: bool = False) -> Callable[[Command], Command]:
    """Give a command an option for each setting, or for those of attached under-stores.

    The command gets the values that were written, by name, as its keyword argument ``settings``, and no others.
    """
    chosen = [s for s in SETTINGS if "flag" in s.places and (s.attachable or not attachable)]

    def decorate(command: Command) -> Command:
        def called(**arguments: Any) -> int:
            flags = {setting.name: arguments.pop(setting.name) for setting in chosen}
            return command(**arguments, settings=written(flags))

        own = inspect.signature(command, eval_str=True)
        parameters = [parameter for name, parameter in own.parameters.items() if name != "settings"]
        parameters += [_parameter(setting, attachable) for setting in chosen]
        called.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        called.__name__, called.__doc__ = command.__name__, command.__doc__
        return called

    return decorate


def written(flags: dict[str, Any]) -> dict[str, Any]:
    """Return the flags that were given; of NAME=VALUE pairs, as a table."""
    found = {}
    for setting in SETTINGS:
        value = flags.get(setting.name)
        if value is not None and value != []:
            found[setting.name] = parse_pairs(value, setting.flag) if setting.kind.shape == "pairs" else value
    return found


def _parameter(setting: Setting, attachable: bool) -> inspect.Parameter:
    shape = setting.kind.shape
    default = "" if attachable or not setting.told_default else f" Default: {setting.told_default}."
    repeated = " May be repeated." if shape == "pairs" else ""
    text = setting.help.replace("`", "") + repeated + default
    annotation: Any
    if shape == "switch" and setting.default == "off":
        names = f"{setting.flag}/--no-{setting.flag.removeprefix('--')}"
        annotation = Annotated[bool | None, typer.Option(names, help=text)]
    elif shape in ("many", "pairs"):
        annotation = Annotated[list[str] | None, typer.Option(setting.flag, metavar=setting.kind.metavar, help=text)]
    else:
        words = ("on", "off") if shape == "switch" else setting.kind.choices
        annotation = Annotated[
            str | None,
            typer.Option(setting.flag, metavar=setting.kind.metavar, help=text, autocompletion=_beginning(words)),
        ]
    return inspect.Parameter(setting.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _beginning(words: Sequence[str]) -> Callable[[str], list[str]] | None:
    """Return what tells a shell which of the words begin so; None for no words: any file may be meant."""
    return (lambda incomplete: [word for word in words if word.startswith(incomplete)]) if words else None
