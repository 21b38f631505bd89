"""What of a notebook one claim needs: the statements that its decision depends on, found from the code itself.

Notebooks are flat: assignments, loops and calls of pure functions, nothing defined. So a backward pass over the
statements, from the one that writes the ledger, finds those that bind or change a name that is still needed.
"""

import ast
from collections.abc import Iterable, Sequence
from typing import Any

from lthlib.errors import unknown
from lthlib.workbook.notebooks import Notebook, source, tags

# Methods of `Results`: one decides a claim, the other writes down all that were decided.
DECIDE, LEDGER = "decide", "verdicts"
# Methods that change what they are called on.
MUTATORS = frozenset(
    (DECIDE, "add", "append", "clear", "extend", "insert", "pop", "remove", "setdefault", "sort", "update")
)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def excerpt(notebook: Notebook, claim_id: str, ids: Iterable[str]) -> list[dict[str, Any]]:
    """The notebook's code cells cut down to what decides one claim: the parameters, and what `verdicts` then needs.

    `ids` are the claims that the notebook decides. A decision whose claim is named by a variable stays with the others
    of its kind, so the ledger can hold more claims than the one. Raises InputError for a claim that is not in `ids`.
    """
    if claim_id not in ids:
        raise unknown(f"claim of {notebook.name}", claim_id, sorted(ids))
    code = [cell for cell in notebook.cells if cell["cell_type"] == "code"]
    blocks = [ast.parse(source(cell)).body for cell in code]
    wanted = _Wanted(claim_id, [statement for block in blocks for statement in block])
    needed: set[str] = set()
    kept: list[dict[str, Any]] = []
    for cell, block in zip(reversed(code), reversed(blocks), strict=True):
        if "parameters" in tags(cell):
            kept.insert(0, cell)
            continue
        lines: list[str] = []
        for statement in reversed([part for whole in block for part in wanted.only(whole)]):
            if _calls(statement, LEDGER) or needed & _changed(statement):
                needed = (needed - _bound(statement)) | _reads(statement)
                lines.insert(0, ast.unparse(statement))
        if lines:
            kept.insert(0, {**cell, "source": "\n".join(lines)})
    return kept


class _Wanted(ast.NodeTransformer):
    """Takes the decisions of other claims out of statements. Each claim is decided once in a notebook."""

    def __init__(self, claim_id: str, statements: Sequence[ast.stmt]) -> None:
        self.claim_id = claim_id
        calls = {call: statement for statement in statements for call in ast.walk(statement) if _is_decision(call)}
        chosen = [call for call in calls if _decided(call) == claim_id]
        if not chosen:
            unnamed = [call for call in calls if _decided(call) is None]
            # A loop over ids that are written in it decides those and no others.
            chosen = [call for call in unnamed if _says(calls[call], claim_id)] or unnamed
        self.chosen = set(chosen)

    def only(self, statement: ast.stmt) -> list[ast.stmt]:
        """The statement without other decisions; none where nothing is left of it."""
        remainder = self.visit(statement)
        return [] if remainder is None else [remainder]

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if _is_decision(node.value) and node.value not in self.chosen else self.generic_visit(node)

    def visit_For(self, node: ast.For) -> ast.AST | None:
        self.generic_visit(node)
        return node if node.body else None

    def visit_If(self, node: ast.If) -> ast.AST | None:
        self.generic_visit(node)
        node.body = node.body or ([ast.Pass()] if node.orelse else [])
        return node if node.body else None


def _is_decision(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == DECIDE


def _decided(call: ast.AST) -> str | None:
    """The id in `results.decide("ID", ...)`; None where it is not written there."""
    assert isinstance(call, ast.Call)
    match call.args[0]:
        case ast.Constant(value=str(name)):
            return name
    return None


def _says(statement: ast.AST, text: str) -> bool:
    return any(isinstance(node, ast.Constant) and node.value == text for node in ast.walk(statement))


def _calls(statement: ast.stmt, method: str) -> bool:
    return any(isinstance(node, ast.Attribute) and node.attr == method for node in ast.walk(statement))


def _reads(statement: ast.AST) -> set[str]:
    """Names that a statement reads before it binds them itself."""
    match statement:
        case ast.For():
            body = _block_reads(statement.body) - _stored(statement.target)
            return _reads(statement.iter) | body | _block_reads(statement.orelse)
        case ast.If():
            return _reads(statement.test) | _block_reads(statement.body) | _block_reads(statement.orelse)
        case ast.With():
            return set().union(*map(_reads, statement.items)) | _block_reads(statement.body)
        case ast.AugAssign():
            return _stored(statement.target) | _reads(statement.value) | _reads(statement.target)
        case ast.Name(ctx=ast.Load()):
            return {statement.id}
    names = set().union(*map(_reads, ast.iter_child_nodes(statement)))
    if isinstance(statement, COMPREHENSIONS):
        return names - set().union(*(_stored(generator.target) for generator in statement.generators))
    if isinstance(statement, ast.Lambda):
        return names - {argument.arg for argument in statement.args.args}
    return names


def _block_reads(block: Sequence[ast.stmt]) -> set[str]:
    names: set[str] = set()
    for statement in reversed(block):
        names = (names - _bound(statement)) | _reads(statement)
    return names


def _bound(statement: ast.AST) -> set[str]:
    """Names whose value from before no longer matters after the statement."""
    match statement:
        case ast.Assign():
            return set().union(*map(_stored, statement.targets))
        case ast.AnnAssign():
            return _stored(statement.target)
        case ast.Import() | ast.ImportFrom():
            return {alias.asname or alias.name.partition(".")[0] for alias in statement.names}
    return set()


def _changed(statement: ast.AST) -> set[str]:
    """Names that a statement binds or whose objects it changes."""
    names = _bound(statement)
    for node in ast.walk(statement):
        match node:
            case ast.Name(ctx=ast.Store() | ast.Del()):
                names.add(node.id)
            case ast.Subscript(ctx=ast.Store() | ast.Del()) | ast.Attribute(ctx=ast.Store() | ast.Del()):
                names |= _root(node)
            case ast.Call(func=ast.Attribute(attr=name)) if name in MUTATORS:
                names |= _root(node.func)
            case ast.Import() | ast.ImportFrom():
                names |= _bound(node)
    inner = (node for node in ast.walk(statement) if isinstance(node, COMPREHENSIONS))
    return names - set().union(*(_stored(generator.target) for node in inner for generator in node.generators))


def _stored(target: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(target) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def _root(node: ast.AST) -> set[str]:
    while isinstance(node, ast.Subscript | ast.Attribute | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return {node.id} if isinstance(node, ast.Name) else set()
