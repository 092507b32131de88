"""Text files that people and their tools write: byte-order marks, line ends, names in them."""

import codecs
from pathlib import Path

MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 where it begins with that mark; without the mark.

    Raises:
        ValueError: there is no such file, or it is in another encoding.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}: expected a text file")
    content = path.read_bytes()
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path} line {line} is not text in {encoding.upper()}: save the file as UTF-8"
        ) from error


def read_lines(path: str | Path) -> list[str]:
    """The lines of a text file, however they end; blank ones at the end of the file are left out.

    Only line feeds and carriage returns end a line: a name may hold any other separator.

    Raises:
        ValueError: as read_text().
    """
    lines = read_text(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def shown(name: str) -> str:
    """A name of a file or person on one line, in characters that every text file can hold."""
    return " ".join(name.encode("utf-8", "backslashreplace").decode("utf-8").split())
