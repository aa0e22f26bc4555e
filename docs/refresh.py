"""Makes the tables in README.md and docs/ anew, each by the command in the mark above it, and the files' sizes.

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
PAGES = ("stat", "active", "dart", "scoring", "running", "real", "reproduce", "performance", "reliability", "results")
FILES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs" / f"{name}.md" for name in PAGES))
SIZE = re.compile(r"(`(\w+\.py)`(, | \| ))\d+ KB")  # "`dart.py` | 53 KB"; "`dart.py`, 148 KB": with common.py
BLOCK = re.compile(r"(<!-- results: python (?:-m )?(.+?) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def size(cell: re.Match) -> str:
    """A cell of a table with the size of the file that it names, or, behind a comma, of a copy with common.py."""
    n_bytes = (ROOT / cell[2]).stat().st_size
    if cell[3] == ", ":
        n_bytes += (ROOT / "common.py").stat().st_size
    return f"{cell[1]}{n_bytes / 1000:.0f} KB"


def output(block: re.Match) -> str:
    """A block with what its command prints now."""
    name, *args = block[2].split()
    with contextlib.redirect_stdout(io.StringIO()) as out, mock.patch.object(sys, "argv", [name, *args]):
        if importlib.import_module(name.removesuffix(".py")).main():
            raise SystemExit(f"{block[2]}: it failed; its message stands above")
    return f"{block[1]}{out.getvalue().strip()}\n{block[3]}"


def refreshed(text: str) -> str:
    """The text with the sizes and the tables as they are now; called from the top folder."""
    return BLOCK.sub(output, SIZE.sub(size, text))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    os.chdir(ROOT)
    for file in FILES:
        file.write_text(refreshed(file.read_text(encoding="utf-8")), encoding="utf-8")
