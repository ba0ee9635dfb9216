"""How the package's docstrings become reStructuredText."""

import re

LABEL = re.compile(r"(Source|Shape|Returns|Raises): +(\S.*)")
ITEM = re.compile(r"    (\w[\w, ]*): (?=``)")  # of the block `Shape:`, one a line
# A shape, or the star of ``*batch`` elsewhere, which would start an emphasis.
SHAPE_OR_STAR = re.compile(r"\b(?:Float|Int64|Int|Bool) \([^()]*\)|(?<![\w\\])\*(?=\w+[,)])")


def escaped(line: str) -> str:
    """A line with shapes such as ``Float (*batch, dim)`` as code, and the stars of others escaped, if not code yet."""
    if line.lstrip().startswith((">>>", "...")):
        return line
    pieces = line.split("``")
    pieces[::2] = [
        SHAPE_OR_STAR.sub(lambda found: r"\*" if found[0] == "*" else f"``{found[0]}``", piece) for piece in pieces[::2]
    ]
    return "``".join(pieces)


def fields(lines: list[str]) -> list[str]:
    """Makes fields of the block ``Shape:`` and of sections on the line of their label, such as ``Source: ...``."""
    written: list[str] = []
    inside = ""
    for line in map(escaped, lines):
        if label := LABEL.fullmatch(line):
            inside = "label"
            written += ["", f":{label[1]}: {label[2]}"]
        elif line == "Shape:":
            inside = "block"
            written += ["", ":Shape:"]
        elif inside == "label" and line and not line.endswith(":"):
            written.append("    " + line.strip())
        elif inside == "block" and (line.startswith(" ") or not line):
            written.append(ITEM.sub(r"    * **\1**: ", line) if ITEM.match(line) else line and "  " + line)
        else:
            inside = ""
            written.append(line)
    return written


def first_sentence(docstring: str) -> str:
    """The first lines of a docstring, to the end of a sentence."""
    sentence: list[str] = []
    for line in docstring.splitlines():
        if not line or (sentence and sentence[-1].endswith((".", ":"))):
            break
        sentence.append(escaped(line))
    return re.sub(r"::?$", ".", " ".join(sentence))
