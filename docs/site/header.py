"""include/lockstep.h as pages: the header's sections, its comments as prose, an anchor for every name.

The header stays the manual; nothing is said here that it does not say. `sections` reads it, `write_pages` writes a page of
reStructuredText for each, whose declarations are those of Sphinx's C domain, so that types in signatures are links.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

BANNER = re.compile(r"/\* -{20,}\n \* (\d+)\. ([^\n]+)\n(.*?) \* -+ \*/", re.S)


@dataclass
class Block:
    """A comment, and the declarations that stand under it without an empty line between."""

    comment: str = ""
    declarations: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """What the block declares, in order: functions, types, constants. Members are their struct's."""
        return [name for each in self.declarations for name in declared(each)]


@dataclass
class Section:
    number: int
    title: str
    prose: str
    blocks: list[Block]

    @property
    def page(self) -> str:
        return re.sub(r"[^a-z]+", "-", self.title.lower()).strip("-")


def introduction(header: str) -> str:
    """The comment at the top."""
    return stripped(header[: header.index("*/") + 2])


def sections(header: str) -> list[Section]:
    """The numbered sections, with all that is declared in them."""
    banners = list(BANNER.finditer(header))
    ends = [each.start() for each in banners[1:]] + [header.rindex("#ifdef __cplusplus")]
    return [
        Section(int(each[1]), each[2], stripped("/*\n" + each[3] + " */"), blocks(header[each.end():end]))
        for each, end in zip(banners, ends)
    ]


def blocks(text: str) -> list[Block]:
    """Cuts at empty lines that stand in neither a comment nor braces."""
    found, lines = [], []
    depth, inside = 0, False
    for line in [*text.splitlines(), ""]:
        if not line.strip() and depth == 0 and not inside:
            if lines:
                found.append(block("\n".join(lines)))
            lines = []
            continue
        lines.append(line)
        code = re.sub(r"/\*.*?\*/", "", line)
        inside = ("/*" in code or inside) and "*/" not in code
        if not inside and not line.lstrip().startswith(("*", "/*")):
            depth += code.count("{") - code.count("}")
    return found


def block(text: str) -> Block:
    result = Block()
    comment = re.match(r"/\*.*?\*/\n?", text, re.S)
    if comment:
        result.comment, text = stripped(comment[0]), text[comment.end():]
    result.declarations = declarations(text)
    return result


def declarations(text: str) -> list[str]:
    """The declarations of a block as they are written, comments of theirs included."""
    found, lines = [], []
    for line in text.splitlines():
        lines.append(line)
        code = re.sub(r"/\*.*?(\*/|$)", "", "\n".join(lines), flags=re.S)
        whole = code.rstrip()
        closed = code.count("{") == code.count("}") and "\n".join(lines).count("/*") == "\n".join(lines).count("*/")
        ended = whole.endswith((";", "}")) if not whole.startswith("#") else not whole.endswith("\\")
        if closed and ended and whole:
            found.append("\n".join(lines).strip("\n"))
            lines = []
    if any(line.strip() for line in lines):
        raise ValueError(f"a declaration does not end: {lines}")
    return found


def plain(declaration: str) -> str:
    """A declaration without comments, on one line."""
    return " ".join(re.sub(r"/\*.*?\*/", " ", declaration, flags=re.S).split())


def kind(declaration: str) -> str:
    code = plain(declaration)
    if code.startswith("#define"):
        return "macro"
    if code.startswith("enum"):
        return "enum"
    if code.startswith("typedef struct"):
        return "struct"
    if code.startswith("typedef"):
        return "type"
    return "function"


def declared(declaration: str) -> list[str]:
    code = plain(declaration)
    match kind(declaration):
        case "macro":
            return [code.split()[1]]
        case "enum":
            return re.findall(r"LOCKSTEP_\w+(?= =)", code)
        case "struct":
            return [re.search(r"(\w+);$", code)[1]]
        case "type":
            return [(re.search(r"\(\*(\w+)\)", code) or re.search(r"(\w+);$", code))[1]]
    return [re.search(r"(lockstep_\w+)\(", code)[1]]


def stripped(comment: str) -> str:
    """What a comment says, without its stars, its columns kept."""
    lines = comment.strip().removeprefix("/*").removesuffix("*/").splitlines()
    lines = [lines[0].removeprefix(" ")] + [re.sub(r"^ \* ?", "", line) for line in lines[1:]] if lines else []
    return "\n".join(line.rstrip() for line in lines).strip("\n")


# Writing ------------------------------------------------------------------------------------------------------------

ROW = re.compile(r"^( {0,6})(\S(?:.{0,44}?\S)?) {2,}(\S.*)$")


def prose(text: str) -> str:
    """A comment as reStructuredText: paragraphs, lists, formulas, and columns of names and their meaning."""
    parts: list[str] = []
    for each in re.split(r"\n\s*\n", text):
        if parts and is_code(parts[-1]) and is_code(each):  # with an empty line in it
            parts[-1] += "\n\n" + each
        else:
            parts.append(each)
    return "\n\n".join(part for each in parts for part in paragraph(each) if part)


def is_code(text: str) -> bool:
    return text != "" and all(line.startswith("    ") for line in text.splitlines() if line)


def paragraph(text: str) -> list[str]:
    lines = text.splitlines()
    if is_code(text):
        language = "c" if ";" in text else "text"
        return [f".. code-block:: {language}\n\n" + textwrap.indent(textwrap.dedent(text), "   ")]
    groups: list[tuple[str, list[str]]] = []
    indent = 0
    for line in lines:
        deep = len(line) - len(line.lstrip())
        last = groups[-1][0] if groups else ""
        if line.lstrip().startswith("- "):
            groups.append(("item", [line.strip()[2:]]))
        elif last == "item" and deep >= 2 or last == "row" and deep >= indent + 4:
            groups[-1][1].append(line.strip())
        elif (row := ROW.match(line)) and not row[2].endswith((".", ",", ";", ":")):
            indent = deep
            groups.append(("row", [row[2], row[3]]))
        elif last == "text":
            groups[-1][1].append(line.strip())
        else:
            groups.append(("text", [line.strip()]))
    written, previous = [], ""
    for name, content in groups:
        if name == "row":
            meaning = " ".join(content[1:])
            shape = re.match(r"(\[[^\]]*\])\s{2,}(.*)", content[1])
            term = literal(content[0])
            if shape:
                term, meaning = f"{term} {literal(shape[1])}", " ".join([shape[2], *content[2:]])
            part = f"{term}\n   {inline(meaning)}"
        elif name == "item":
            part = f"- {inline(' '.join(content))}"
        else:
            part = inline(" ".join(content))
        if name == "row" and previous != "row":
            part = ".. rst-class:: arguments\n\n" + part
        written.append(part)
        previous = name
    return written


def literal(text: str) -> str:
    return f"``{text}``"


def inline(text: str) -> str:
    """Escapes what reStructuredText would take for markup; names become literals, pages of docs/ links."""
    parts = []
    for index, part in enumerate(text.split("`")):
        if index % 2:
            parts.append(literal(part))
            continue
        for piece in re.split(r"(docs/\w+\.md|\b[A-Za-z]\w*_\w+)", part):
            if re.fullmatch(r"docs/\w+\.md", piece):
                piece = f":doc:`{piece} </{piece.removesuffix('.md')}>`"
            elif re.fullmatch(r"[A-Za-z]\w*_\w+", piece):
                piece = literal(piece)
            else:
                piece = re.sub(r"([\\*_|<>\[\]])", r"\\\1", piece)
            parts.append(piece)
    # Markup must be apart from what surrounds it.
    text = ""
    for part in parts:
        marked = part.startswith(("``", ":doc:")), text.endswith("`")
        apart = part[:1].isspace() or not text or text[-1:].isspace() or not part
        text += ("" if apart or not any(marked) else "\\ ") + part
    return text


def directive(one: Block) -> str:
    """A block's declarations: signatures with anchors, then what the comment says, then code that has more to show."""
    functions = [plain(each) for each in one.declarations if kind(each) == "function"]
    functions = [re.sub(r"^static inline ", "", each.split("{")[0].strip().rstrip(";")) for each in functions]
    types = [plain(each).rstrip(";").removeprefix("typedef ")
             for each in one.declarations if kind(each) in ("struct", "type")]
    shown = [each for each in one.declarations
             if kind(each) in ("enum", "macro") or kind(each) == "struct" and "{" in each
             or kind(each) == "function" and "{" in plain(each)]
    names = one.names
    if functions:
        head = ("function", functions)
    elif any(kind(each) == "struct" for each in one.declarations):
        head = ("struct", [name for each in one.declarations if kind(each) == "struct" for name in declared(each)])
    elif types:
        head = ("type", types)
    else:
        head = ("macro", names)
    lead = f".. c:{head[0]}:: "
    text = lead + ("\n" + " " * len(lead)).join(head[1])
    body = prose(one.comment)
    if shown:
        body += "\n\n.. code-block:: c\n\n" + textwrap.indent("\n".join(shown), "   ")
    return text + "\n\n" + textwrap.indent(body, "   ")


def page(section: Section) -> str:
    title = f"{section.number}. {section.title}"
    parts = [title + "\n" + "=" * len(title), prose(section.prose)]
    functions = [name for each in section.blocks for name in each.names if name.startswith("lockstep_")
                 and any(kind(one) == "function" and name in declared(one) for one in each.declarations)]
    if len(functions) > 3:
        parts.append(".. hlist::\n   :columns: 2\n\n" + "\n".join(f"   * ``{name}``" for name in functions))
    for each in section.blocks:
        parts.append(directive(each) if each.declarations else prose(each.comment))
    return "\n\n".join(part for part in parts if part) + "\n"


def anchors(header: str) -> dict[str, tuple[str, str]]:
    """Where each name is explained: (page, the name that has an anchor there)."""
    found = {}
    for section in sections(header):
        for each in section.blocks:
            names = each.names
            own = [name for name in names if name.startswith("lockstep_")]
            for name in names:
                found[name] = (section.page, name if name in own or not own else own[0])
    return found


def write_pages(header: str, folder: Path) -> None:
    """The manual's pages; files are touched only if they change, so that Sphinx reads only those again."""
    every = sections(header)
    title = "C manual"
    top = re.split(r"\nSections: ", introduction(header))[0]
    pages = {
        "index.rst": "\n\n".join([
            title + "\n" + "=" * len(title), prose(top.replace("lockstep.h: keep", "Keep", 1)),
            "The same, as the file it is made of: :download:`include/lockstep.h </include/lockstep.h>`.",
            ".. toctree::\n   :maxdepth: 1\n\n" + "\n".join(f"   {each.page}" for each in every)]) + "\n",
        **{f"{each.page}.rst": page(each) for each in every},
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages.items():
        if not (folder / name).exists() or (folder / name).read_text() != text:
            (folder / name).write_text(text)
    for stale in set(folder.glob("*.rst")) - {folder / name for name in pages}:
        stale.unlink()
