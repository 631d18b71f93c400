# SPDX-License-Identifier: BSD-2-Clause
"""Checks the prose of docs, docstrings and comments against docs/style.md: phrases, and the length of sentences.

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
"""Words of a sentence."""
# Code may quote a table row or a command in a comment: only a much longer sentence is reported there.
LONGEST_IN_CODE = 40

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
    markdown = path.suffix == ".md"
    for line, text in paragraphs(path.read_text()) if markdown else prose(path.read_text()):
        for pattern, advice in _PHRASES.items():
            if match := pattern.search(text):
                yield line, f"{match[0].strip()!r}: {advice}"
        for sentence in sentences(text):
            words = len(sentence.split())
            if words > (LONGEST if markdown else LONGEST_IN_CODE):
                yield line, f"a sentence of {words} words: {sentence[:60]}..."


def sentences(text: str) -> list[str]:
    """Sentences, with code spans and links as one word each."""
    text = re.sub(r"``?[^`]*``?", "CODE", text)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    text = re.sub(r"\((?:[^()]|\([^()]*\))*\)", "", text)
    return re.split(r"(?<=[.!?:;])\s+", " ".join(text.split()))


def paragraphs(text: str) -> Iterator[tuple[int, str]]:
    """Paragraphs and list items of a Markdown page; no tables, headings or code."""
    collected: list[str] = []
    begin, fenced = 0, False
    for number, line in enumerate([*text.splitlines(), ""], start=1):
        if line.startswith("```"):
            fenced = not fenced
        skip = fenced or line.startswith(("    ", "\t", "|", "#", "```", "<"))
        starts = bool(re.match(r"\s*(?:[-*]|\d+\.) ", line))
        if collected and (skip or starts or not line.strip()):
            yield begin, " ".join(collected)
            collected = []
        if not skip and line.strip():
            begin = begin if collected else number
            collected.append(re.sub(r"^\s*(?:[-*]|\d+\.) ", "", line))


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Docstrings and comments of a Python file."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring and isinstance(node.body[0], ast.Expr):
                for paragraph in re.split(r"\n\s*\n", docstring):
                    if not paragraph.startswith("    "):
                        yield node.body[0].lineno, paragraph
    block: list[str] = []
    begin = last = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        comment = token.string.lstrip("#").strip()
        if token.start[0] != last + 1 and block:
            yield begin, " ".join(block)
            block = []
        begin = begin if block else token.start[0]
        # A sample line above a regex, a pragma, a rule.
        if comment and not re.match(r"type: |noqa|fmt: |-- |SPDX|\S+\s{2,}", comment):
            block.append(comment)
        last = token.start[0]
    if block:
        yield begin, " ".join(block)


if __name__ == "__main__":
    main()
