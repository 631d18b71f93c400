# SPDX-License-Identifier: BSD-2-Clause
"""Checks docs, docstrings, comments, errors and help texts against docs/style.md: phrases, and the length of sentences.

python tests/style.py [FILE ...]        # all tracked files by default; exit code 1 if there is a complaint
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
LONGEST = 25
"""Words of a sentence. Text in parentheses is a separate sentence."""

PHRASES = {
    r"\banew\b": "again",
    r"(?<!there )\b(?:is|are|was|were) none\b": "say what it is not",
    r"\bwhoever\b": "name who",
    r"\bmends?\b": "hint, fix",
    r"\bshall\b": "must, or the present tense",
    r"\bas it (?:is|was) (?:there|here|now|found|given)\b": "unchanged",
    r"(?:^|[.:;] )What (?:is|was|were|are|it|we|they|a|the|comes|has|goes|does|stands|lies|cannot|must|no)\b(?![^.:;]*\?)": "no clause as a subject",
    r"\bsomebody(?: else)?'s\b": "name whose",
    r"\bnobody\b": "no one is named: say which user or program",
    r"\bis no news\b": "is expected",
    r"\bfor people\b": "for the reader",
    r"\b(?:it|which|that|this) (?:is|was) no (?!longer|more|less)": "is not a",
    r"\bin spite of\b": "despite",
    r"\bof (?:ours|yours|others)\b": "name whose",
    r"\b(?:process|thread|section|namespace|environment|boot|limit) of (?:its|their|our) own\b": "separate",
    r"\b(?:for|only|most|least|after) so (?:many|long)\b": "this many, this long",
    r"\bnext to nothing\b": "almost nothing",
    r"\b(?:is|are) there twice\b": "name the place",
    r"\bwhat (?:still|was|were) (?:runs?|ran|prepared|unpacked|found)\b": "name the thing",
}
_PHRASES = {re.compile(pattern, re.IGNORECASE if pattern.startswith(r"\b") else 0): advice for pattern, advice in PHRASES.items()}

# Files that quote what others wrote, or list the phrases.
_LEFT_OUT = ("docs/style.md", "tests/style.py", "CHANGELOG.md")


def main() -> None:
    names = (
        sys.argv[1:]
        or subprocess.run(["git", "ls-files", "*.py", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    )
    count = 0
    for name in names:
        if name in _LEFT_OUT:
            continue
        for line, complaint in complaints(ROOT / name):
            print(f"{name}:{line}: {complaint}")
            count += 1
    sys.exit(1 if count else 0)


def complaints(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) for each sentence that breaks a rule."""
    text = path.read_text()
    for line, paragraph in (*paragraphs(text), *cells(text)) if path.suffix == ".md" else (*prose(text), *messages(text)):
        for pattern, advice in _PHRASES.items():
            if match := pattern.search(paragraph):
                yield line, f"{match[0].strip()!r}: {advice}"
        for sentence in sentences(paragraph):
            words = len(sentence.split())
            if words > LONGEST:
                yield line, f"a sentence of {words} words: {sentence[:60]}..."


def sentences(text: str) -> list[str]:
    """Sentences, with code spans and links as one word each. A colon or semicolon does not end a sentence."""
    text = re.sub(r"``?[^`]*``?", "CODE", text)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    inner = re.compile(r"\s*\(((?:[^()]|\([^()]*\))*)\)")
    parts = [inner.sub("", text), *inner.findall(text)]
    return [sentence for part in parts for sentence in re.split(r"[.!?][\"*]*\s+", " ".join(part.split()))]


def paragraphs(text: str) -> Iterator[tuple[int, str]]:
    """Paragraphs and list items of a Markdown page; no tables, headings or code."""
    collected: list[str] = []
    begin = 0
    for number, line in [*_unfenced(text), (0, "")]:
        skip = line.startswith(("    ", "\t", "|", "#", "<"))
        starts = bool(re.match(r"\s*(?:[-*]|\d+\.) ", line))
        if collected and (skip or starts or not line.strip()):
            yield begin, " ".join(collected)
            collected = []
        if not skip and line.strip():
            begin = begin if collected else number
            collected.append(re.sub(r"^\s*(?:[-*]|\d+\.) ", "", line))


def cells(text: str) -> Iterator[tuple[int, str]]:
    """The cells of the tables of a Markdown page."""
    for number, line in _unfenced(text):
        if line.startswith("|") and not re.fullmatch(r"[-| ]+", line):
            for cell in re.split(r"(?<!\\)\|", line.strip("|")):
                yield number, cell.strip()


def _unfenced(text: str) -> Iterator[tuple[int, str]]:
    """The numbered lines of a Markdown page; those of a code block are empty."""
    fenced = False
    for number, line in enumerate(text.splitlines(), start=1):
        fence = line.startswith("```")
        fenced = fenced != fence
        yield number, "" if fenced or fence else line


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Docstrings and comments of a Python file."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring and isinstance(node.body[0], ast.Expr):
                for paragraph in _paragraphs(docstring):
                    yield node.body[0].lineno, paragraph
    lines = text.splitlines()
    block: list[str] = []
    begin = last = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        if token.start[0] != last + 1 and block:
            yield from _comment(begin, block, lines[last] if last < len(lines) else "")
            block = []
        begin = begin if block else token.start[0]
        block.append(token.string.lstrip("#").removeprefix(" "))
        last = token.start[0]
    if block:
        yield from _comment(begin, block, lines[last] if last < len(lines) else "")


# - an item;  --option  a description;  Source: a file
_STARTS = re.compile(r"\s*[-*] |\S+(?: \S+)?\s{2,}|[A-Z]\w+: ")


def _paragraphs(docstring: str) -> Iterator[str]:
    """Paragraphs and items of a docstring; no indented lines after a colon, which are samples."""
    for paragraph in re.split(r"\n\s*\n", docstring):
        collected: list[str] = []
        for line in paragraph.splitlines():
            if line.startswith("    ") and (not collected or collected[-1].endswith(":")):
                continue
            if collected and _STARTS.match(line):
                yield " ".join(collected)
                collected = []
            collected.append(line)
        if collected:
            yield " ".join(collected)


def _comment(begin: int, block: list[str], after: str) -> Iterator[tuple[int, str]]:
    """The paragraphs of a comment. Above a regex each line is one, because it may be a sample."""
    block = [line for line in block if not re.match(r"type: |noqa|fmt: |-- |SPDX", line)]
    if re.search(r"\bre\.compile|\b(?:r|rb|rf)\"|\b(?:marker|stage)\(", after):
        yield from enumerate((line for line in block if not _STARTS.match(line)), start=begin)
    elif block:
        for paragraph in _paragraphs("\n".join(block)):
            yield begin, paragraph


def messages(text: str) -> Iterator[tuple[int, str]]:
    """The texts of errors, and of arguments ``hint`` and ``help``."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            for keyword in node.keywords:
                if keyword.arg in ("hint", "help"):
                    yield node.lineno, _literal(keyword.value)
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            yield node.lineno, _literal(node.exc.args[0])


def _literal(node: ast.expr) -> str:
    """The text of a string, with each value of an f-string as one word."""
    if isinstance(node, ast.JoinedStr):
        return "".join(_literal(value) for value in node.values)
    if isinstance(node, ast.FormattedValue):
        return "VALUE"
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


if __name__ == "__main__":
    main()
