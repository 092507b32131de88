"""Names of sets, people and files as they may stand in a picture, a table or a file's name.

They are the users' own: any text is a name, none may end a report.
"""

import hashlib
import re

# Letters of a name in a picture: more leave no room for the curves.
MOST_IN_PICTURE = 40
# Bytes of a file's name; file systems allow 255, and an ending comes after it.
MOST_IN_FILE_NAME = 100
LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    # After the \\ of the row before, these two would be its options.
    "[": "{[}",
    "*": "{*}",
}
# As numbers: dialects differ in which of them a backslash may stand before.
MARKDOWN = {c: f"&#{ord(c)};" for c in "\\`*[]~$|&<>"}
# Between letters an underscore is one: cfp_fp stays as it is.
MARKDOWN_UNDERSCORE = re.compile(r"(?<![^\W_])_|_(?![^\W_])")


def one_line(text: str) -> str:
    """Without line ends, control characters and halves of characters."""
    shown = "".join(c if c.isprintable() else "\ufffd" if c > "\ud7ff" else " " for c in text)
    return " ".join(shown.split())


def in_picture(text: str, most: int = MOST_IN_PICTURE) -> str:
    """Text that matplotlib shows as it is: no formula, and no label that it hides; cut if long."""
    shown = one_line(text)
    if len(shown) > most:
        shown = shown[: most - 1] + "…"
    # A label that begins with an underscore is left out of legends.
    return (" " if shown.startswith("_") else "") + shown.replace("$", r"\$")


def in_latex(text: str) -> str:
    """Text for a LaTeX table's cell."""
    return "".join(LATEX.get(character, character) for character in one_line(text))


def in_markdown(text: str) -> str:
    """Text for a Markdown table's cell."""
    shown = "".join(MARKDOWN.get(character, character) for character in one_line(text))
    return MARKDOWN_UNDERSCORE.sub("&#95;", shown)


def in_file_name(text: str) -> str:
    """A file's name without its ending; two texts never share one."""
    name = re.sub(r"[^\w.-]", "_", text)
    if name == text and len(name.encode()) <= MOST_IN_FILE_NAME:
        return name
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
    cut = name.encode()[: MOST_IN_FILE_NAME - 9].decode(errors="ignore")
    return f"{cut}_{digest}"
