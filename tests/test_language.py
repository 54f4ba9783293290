"""The words that docs and code do not use, see CONTRIBUTING.md, and the form of commit messages."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commit_message import problem

ROOT = Path(__file__).parents[1]
NAMES = {"told", "asked", "given", "found", "made", "kept", "begun", "way", "ways", "anew", "lent", "laps"}
NAMES |= {"paces", "workshop", "ledger", "janitor", "ticket"}
PROSE = re.compile(
    r"\b(workshop|ledger|janitor|told|asked|begun|anew|laps|paces|lent|which is none|(was|is) given up"
    r"|nothing was heard|has no strength|place in the line|ways? to compute|contained\.py|bad days)\b",
    re.IGNORECASE,
)


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, check=True)
    return [ROOT / name for name in listed.stdout.decode().splitlines() if name != "tests/test_language.py"]


def identifiers(tree: ast.AST) -> Iterator[str]:
    """The names that a module defines: variables, parameters, functions, classes, attributes, keywords."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.arg):
            yield node.arg


@pytest.mark.parametrize("path", tracked("*.py"), ids=lambda path: str(path.relative_to(ROOT)))
def test_code_speaks_standard_english(path):
    tree = ast.parse(path.read_text())
    names = {
        name for name in identifiers(tree) if NAMES & set(re.split(r"_+|(?<=[a-z])(?=[A-Z])", name.lower()))
    }
    strings = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    comments = re.findall(r"#[^\n]*", path.read_text())
    assert not names
    assert not [match[0] for text in strings + comments for match in PROSE.finditer(text)]


@pytest.mark.parametrize(
    "path", tracked("*.md", ".env.example"), ids=lambda path: str(path.relative_to(ROOT))
)
def test_documents_speak_standard_english(path):
    assert not [match[0] for match in PROSE.finditer(path.read_text())]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("Keep GPS out of XMP\n\nIt was left in the packet.", ""),
        ("Keep GPS out of XMP\nIt was left.", "empty line"),
        ("Keep GPS out of XMP\n# a comment\n", "say why"),
        ("Fixed GPS\n\nbody", "not imperative"),
        ("Express sizes in pixels\n\nThe unit was missing.", ""),
        ("Removes GPS\n\nbody", "not imperative"),
        ("gps: remove\n\nbody", "capital"),
        ("Remove GPS.\n\nbody", "full stop"),
        (f"Remove {'x' * 80}\n\nbody", "87 characters"),
    ],
)
def test_a_commit_message_has_the_form_of_gitmessage(message, words):
    assert words in problem(message) and bool(words) == bool(problem(message))
