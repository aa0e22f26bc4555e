"""Makes the tables in README.md and docs/results.md anew, each by the command in the mark above it, and counts the files' lines.

    python docs/refresh.py
"""
import contextlib
import importlib
import io
import os
import re
import sys
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parent.parent
FILES = (ROOT / "README.md", ROOT / "docs" / "results.md")
LINES = re.compile(r"(\| `(\w+\.py)`(?: \||,) )\d+ \|")  # "| `dart.py` | 700 |" and "| DART | `dart.py`, 700 |"
BLOCK = re.compile(r"(<!-- results: python (?:-m )?(.+?) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def refreshed(text: str) -> str:
    """The text with the numbers of lines as they are and what the commands of its blocks print now; called from the top folder."""
    def output(block: re.Match) -> str:
        name, *args = block[2].split()
        with contextlib.redirect_stdout(io.StringIO()) as out, mock.patch.object(sys, "argv", [name, *args]):
            if importlib.import_module(name.removesuffix(".py")).main():
                raise SystemExit(f"{block[2]}: it failed; its message stands above")
        return f"{block[1]}{out.getvalue().strip()}\n{block[3]}"
    text = LINES.sub(lambda cell: f"{cell[1]}{len((ROOT / cell[2]).read_text(encoding='utf-8').splitlines())} |", text)
    return BLOCK.sub(output, text)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    os.chdir(ROOT)
    for file in FILES:
        file.write_text(refreshed(file.read_text(encoding="utf-8")), encoding="utf-8")
