"""What shells are given so that they complete commands: the scripts of typer, with that for zsh mended."""

from __future__ import annotations

from typer import _completion_classes, _completion_shared

_CALLED = """
[ "$funcstack[1]" != _%(prog_name)s ] || %(complete_func)s "$@"
"""
"""zsh runs the file of a command when that is completed first, and wants an answer of it then, too."""


def mend_zsh() -> None:
    """zsh takes a file of its ``fpath`` for a completion only if ``#compdef`` is its first line, and typer's is empty."""
    script = _completion_shared.COMPLETION_SCRIPT_ZSH.strip() + _CALLED
    _completion_shared._completion_scripts["zsh"] = script
    _completion_classes.ZshComplete.source_template = script
