"""Functions with docstrings, cut out of Python source: what they say they do, and what they do."""

import ast
import re
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from tercet.data.packages import SourceFile

MIN_QUERY_WORDS, MAX_QUERY_WORDS = 3, 64
MIN_BODY_LINES = 2
UNPARSED = "files that do not parse"
Definition = ast.FunctionDef | ast.AsyncFunctionDef

# Where a docstring's prose ends without a blank line: a field, an example, a section, its rule.
SECTION = re.compile(
    r"(:\w+[^:]*:(\s|$)|@\w+|>>>|\.\. |```|[-=~]{3,}\s*$"
    r"|(Args?|Arguments|Parameters?|Params|Returns?|Yields?|Raises|Examples?|Notes?|Usage|"
    r"Attributes|Inputs?|Outputs?|Keyword [Aa]rguments|See [Aa]lso|References)\s*:?\s*$"
    r"|(Args|Arguments|Parameters|Params|Returns|Yields|Raises|Examples?|Usage)\s*:)"
)
SIGNATURE = re.compile(
    r"[\w.]+\s*\(.*\)\s*(->.*)?$"  # "svd(input, some=True) -> Tensor"
    r"|[*`]*\w+[*`]*\s*(\([^:]*\)\s*)?:\s"  # "hidden (`torch.Tensor` of shape (n,)): the states"
)
LETTERS = re.compile(r"[^\W\d_]{2,}")


@dataclass(frozen=True)
class Function:
    """A pair: the docstring's first paragraph, and the code without the docstring."""

    id: str  # package.module:Class.function
    package: str
    query: str
    code: str


def functions(file: SourceFile) -> tuple[list[Function], Counter[str]]:
    """The usable functions of a file in its order, and a count of what was left out, by reason."""
    skipped: Counter[str] = Counter()
    try:
        with tokenize.open(file.path) as stream:  # honours a coding line
            source = stream.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # not our code to mend
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OSError):
        return [], Counter({UNPARSED: 1})
    lines = source.split("\n")
    kept = []
    for name, node in _definitions(tree.body, ""):
        query = first_paragraph(ast.get_docstring(node))
        reason = _reason(node, query, lines)
        if reason:
            skipped[reason] += 1
        else:
            code = without_docstring(node, lines)
            kept.append(Function(f"{file.module}:{name}", file.package, query, code))
    return kept, skipped


def first_paragraph(docstring: str | None) -> str:
    """The prose a docstring opens with, on one line; empty if it does not open with prose.

    >>> first_paragraph("Add two\\n  numbers.\\n\\nSlowly.")
    'Add two numbers.'
    >>> first_paragraph("Add them.\\n:param a: one")
    'Add them.'
    >>> first_paragraph("add(a, b) -> int"), first_paragraph("a (`int`): The first.")
    ('', '')
    """
    prose = []
    for line in (docstring or "").strip().split("\n"):
        if not line.strip() or SECTION.match(line.strip()):
            break
        prose.append(line)
    text = " ".join(" ".join(prose).split())
    return "" if SIGNATURE.match(text) else text


def without_docstring(node: Definition, lines: list[str]) -> str:
    """Decorators, signature and body as they stand in the file, moved to the left margin."""
    start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    docstring = node.body[0]
    first, last = docstring.lineno, docstring.end_lineno or docstring.lineno
    before = lines[first - 1].encode()[: docstring.col_offset].decode()
    after = lines[last - 1].encode()[docstring.end_col_offset :].decode().lstrip(" \t;")
    if after.startswith("#"):  # a remark on the docstring
        after = ""
    body = lines[last : node.end_lineno]
    if after:
        body = [before + after, *body]
    elif before.strip():  # def f(): "text"
        body = [before.rstrip(), *body]
    while body and not body[0].strip():
        body = body[1:]
    kept = [*lines[start - 1 : first - 1], *body]
    margin = lines[start - 1][: len(lines[start - 1]) - len(lines[start - 1].lstrip())]
    return "\n".join(line.removeprefix(margin).rstrip() for line in kept).strip()


def _definitions(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, Definition]]:
    """Functions and methods by qualified name; those inside functions are part of their code."""
    for node in body:
        if isinstance(node, Definition):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from _definitions(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.If | ast.Try | ast.With):
            for _, inner in ast.iter_fields(node):
                if isinstance(inner, list):
                    yield from _definitions(inner, prefix)
        elif isinstance(node, ast.ExceptHandler):
            yield from _definitions(node.body, prefix)


def _reason(node: Definition, query: str, lines: list[str]) -> str | None:
    """Why a function makes no pair, or None."""
    if ast.get_docstring(node, clean=False) is None:
        return "no docstring"
    if node.name.startswith("test_"):
        return "tests"
    if not query or len(LETTERS.findall(query)) < 2:
        return "docstring opens without prose"
    if not MIN_QUERY_WORDS <= len(query.split()) <= MAX_QUERY_WORDS:
        return f"docstring under {MIN_QUERY_WORDS} or over {MAX_QUERY_WORDS} words"
    statements = node.body[1:]
    if all(map(_does_nothing, statements)):
        return "empty body"
    code = lines[statements[0].lineno - 1 : node.end_lineno]
    if sum(bool(line.strip()) for line in code) < MIN_BODY_LINES:
        return f"body under {MIN_BODY_LINES} lines"
    return None


def _does_nothing(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Raise):
        raised = statement.exc.func if isinstance(statement.exc, ast.Call) else statement.exc
        return isinstance(raised, ast.Name) and raised.id == "NotImplementedError"
    ellipsis = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return ellipsis or isinstance(statement, ast.Pass)
