"""README's table of settings, made of the table in the code: ``python -m tests.support.readme`` writes it anew."""

from __future__ import annotations

import re
from pathlib import Path

from luxfuse.core.settings import SETTINGS, Setting

README = Path(__file__).parents[2] / "README.md"
_HEAD = "| setting | value | default | |\n|---|---|---|---|\n"


def table() -> str:
    """Return the table as it is to be."""
    return _HEAD + "".join(map(_row, SETTINGS))


def replaced(text: str) -> str:
    """Return README with its table as it is to be."""
    before, _, after = text.partition(_HEAD)
    rows = after.splitlines(keepends=True)
    rest = next(number for number, row in enumerate(rows) if not row.startswith("|"))
    return before + table() + "".join(rows[rest:])


def _row(setting: Setting) -> str:
    value = f"`{setting.kind.metavar}`" if "argument" not in setting.places else ""
    text = setting.help
    if setting.item:
        text += f" A table in the file; one by one `{setting.flag} {setting.kind.metavar}`."
    if setting.places == {"flag", "variable", "file"}:
        text += " Not with `-o`."
    if "argument" in setting.places:
        text += " An argument of `mount`; may stand in the file or in a variable."
    cells = (f"`{setting.name}`", value, setting.told_default, text)
    row = "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
    return re.sub(r"see (\w+) in README\.md", lambda section: f"see [{section[1]}](#{section[1].lower()})", row)


if __name__ == "__main__":
    README.write_text(replaced(README.read_text()))
