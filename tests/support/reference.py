"""The table of docs/SETTINGS.md, made of the table in the code: ``python -m tests.support.reference`` writes it anew."""

from __future__ import annotations

import re
from pathlib import Path

from luxfuse.core.settings import SETTINGS, Setting

PAGE = Path(__file__).parents[2] / "luxfuse/docs/SETTINGS.md"
_HEAD = "| setting | value | default | |\n|---|---|---|---|\n"


def table() -> str:
    """Return the table as it is to be."""
    return _HEAD + "".join(map(_row, SETTINGS))


def replaced(text: str) -> str:
    """Return the page with its table as it is to be."""
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
    return re.sub(r"see (\w+) in luxfuse/docs/(\w+\.md)", lambda at: f"see [{at[1]}]({at[2]}#{at[1].lower()})", row)


if __name__ == "__main__":
    PAGE.write_text(replaced(PAGE.read_text()))
