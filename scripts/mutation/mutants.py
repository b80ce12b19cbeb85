"""The wrong changes of a module's source: which there are, and how one is put into the running module."""

import ast
import copy
import itertools
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

Change = Callable[[Any], ast.AST]

COMPARISONS: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
OPERATORS: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}
LOGGING = ("logger", "_logger", "logging", "log", "warnings")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One changed node: of the statement `statement` of the module, the node number `node` in `ast.walk`'s order."""

    path: str
    line: int
    end_line: int
    function: str
    text: str
    statement: int
    node: int
    at_import: bool
    change: Change

    @property
    def key(self) -> str:
        """How `tests/mutants.txt` names it: without line numbers, which move."""
        return f"{self.path} {self.function}: {self.text}"


def mutants_of(path: Path, root: Path) -> list[Mutant]:
    """All mutants of a module, in the order of its lines."""
    tree = ast.parse(_source(path))
    name = path.relative_to(root).as_posix()
    found = []
    for number, statement in enumerate(tree.body):
        skipped = _skipped(statement)
        functions, at_import = _functions(statement), _at_import(statement)
        for index, node in enumerate(ast.walk(statement)):
            if node in skipped:
                continue
            for change in _changes(node):
                changed = change(copy.deepcopy(node))
                text = f"{_short(node)} -> {_short(changed)}"
                line = getattr(node, "lineno", statement.lineno)
                end = getattr(node, "end_lineno", line) or line
                function = functions.get(node, "module")
                found.append(Mutant(name, line, end, function, text, number, index, node in at_import, change))
    return sorted(found, key=lambda mutant: mutant.line)


@cache
def _source(path: Path) -> str:
    """The source as it was at the start, though somebody may be editing it."""
    return path.read_text()


def _short(node: ast.AST) -> str:
    text = ast.unparse(node).splitlines()
    return text[0] if len(text) == 1 else f"{text[0]} ..."


def _functions(statement: ast.stmt) -> dict[ast.AST, str]:
    """The name of the function or class around each node; inner ones are written last."""
    names: dict[ast.AST, str] = {}

    def visit(node: ast.AST, name: str) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{name}.{node.name}".lstrip(".")
        names[node] = name or "module"
        for child in ast.iter_child_nodes(node):
            visit(child, name)

    visit(statement, "")
    return names


def _at_import(node: ast.AST) -> set[ast.AST]:
    """What runs when the module is imported: all but the bodies of functions."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            children = [node.args, *node.decorator_list]
        case ast.Lambda():
            children = [node.args]
        case _:
            children = list(ast.iter_child_nodes(node))
    return {node}.union(*map(_at_import, children))


def _skipped(statement: ast.stmt) -> set[ast.AST]:
    """What is no behaviour: annotations, docstrings, messages' calls of a logger, `__all__`, type-checking imports."""
    if isinstance(statement, ast.Import | ast.ImportFrom) or "TYPE_CHECKING" in ast.unparse(statement)[:20]:
        return set(ast.walk(statement))
    roots: list[ast.AST] = []
    for node in ast.walk(statement):
        roots += [part for field in ("annotation", "returns") if (part := getattr(node, field, None)) is not None]
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            roots.append(node)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and _is_logging(node.value.func):
            roots.append(node)
        if isinstance(node, ast.Raise):
            roots += [part for part in ast.walk(node) if isinstance(part, ast.JoinedStr)]
        if isinstance(node, ast.Call):
            roots += [
                word.value
                for word in node.keywords
                if word.arg in ("slots", "frozen", "strict", "stacklevel", "maxsize")
            ]
    return {part for root in roots for part in ast.walk(root)}


def _is_logging(function: ast.expr) -> bool:
    return isinstance(function, ast.Attribute) and ast.unparse(function.value) in LOGGING


def _changes(node: ast.AST) -> Iterator[Change]:
    match node:
        case ast.Compare(ops=[operator]):
            for other in COMPARISONS[type(operator)]:
                yield lambda node, other=other: _with(node, ops=[other()])
        case ast.BinOp(op=operator) if type(operator) in OPERATORS and not _is_text(node.left, node.right):
            yield lambda node: _with(node, op=OPERATORS[type(node.op)]())
        case ast.AugAssign(op=operator) if type(operator) in OPERATORS and not _is_text(node.value):
            yield lambda node: _with(node, op=OPERATORS[type(node.op)]())
        case ast.BoolOp():
            yield lambda node: _with(node, op=OPERATORS[type(node.op)]())
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield lambda node: node.operand
        case ast.Constant(value=bool()):
            yield lambda node: _with(node, value=not node.value)
        case ast.Constant(value=int() | float()):
            yield lambda node: _with(node, value=node.value + 1)
            yield lambda node: _with(node, value=node.value - 1)
        case ast.Return(value=ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            yield lambda node: _with(node, value=ast.Constant(None))
        case ast.Expr(value=ast.Call() | ast.Await(value=ast.Call())):
            yield lambda node: ast.Pass()
        case ast.Call(func=ast.Name(id=name)) if name in NAMES:
            yield lambda node: _with(node, func=ast.Name(NAMES[node.func.id], ast.Load()))
        case ast.Call(args=[first, second, *_]) if _differ(first, second) and not _is_symmetric(node.func):
            yield lambda node: _with(node, args=[node.args[1], node.args[0], *node.args[2:]])
        case ast.If() if not isinstance(node.test, ast.Compare):
            yield lambda node: _with(node, test=ast.UnaryOp(ast.Not(), node.test))
        case ast.IfExp():
            yield lambda node: _with(node, body=node.orelse, orelse=node.body)
        case ast.Continue():
            yield lambda node: ast.Break()
        case ast.Break():
            yield lambda node: ast.Continue()


def _with(node: Any, **fields: object) -> ast.AST:
    for name, value in fields.items():
        setattr(node, name, value)
    return node  # type: ignore[no-any-return]


def _is_text(*nodes: ast.AST) -> bool:
    return any(
        isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
        for node in nodes
    )


def _differ(first: ast.expr, second: ast.expr) -> bool:
    starred = isinstance(first, ast.Starred) or isinstance(second, ast.Starred)
    return not starred and ast.dump(first) != ast.dump(second)


def _is_symmetric(function: ast.expr) -> bool:
    return ast.unparse(function).rpartition(".")[2] in ("min", "max", "minimum", "maximum", "isclose", "array_equal")


class _Replace(ast.NodeTransformer):
    def __init__(self, node: ast.AST, change: Change) -> None:
        self._node, self._change = node, change

    def visit(self, node: ast.AST) -> Any:
        return self._change(node) if node is self._node else self.generic_visit(node)


def put_in(mutant: Mutant, root: Path) -> None:
    """Change the running module: only the statement around the mutant is executed again."""
    path = root / mutant.path
    statement = ast.parse(_source(path)).body[mutant.statement]
    node = next(itertools.islice(ast.walk(statement), mutant.node, None))
    changed = ast.fix_missing_locations(_Replace(node, mutant.change).visit(statement))
    future = ast.parse("from __future__ import annotations").body
    code = compile(ast.fix_missing_locations(ast.Module([*future, changed], [])), str(path), "exec")
    module = sys.modules[".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")]
    names = dict(vars(module))
    exec(code, names)
    for name, new in names.items():
        old = vars(module).get(name)
        if old is not new and name != "__builtins__":
            _put(module, name, old, new)


def _put(module: types.ModuleType, name: str, old: Any, new: Any) -> None:
    """Functions and classes get new code and stay the same objects; other values are set wherever they are imported."""
    if isinstance(old, type) and isinstance(new, type):
        _put_class(old, new)
    elif not _put_code(old, new):
        importers = [
            other
            for known, other in sys.modules.items()
            if known.partition(".")[0] == module.__name__.partition(".")[0]
        ]
        for other in importers:
            if other is module or vars(other).get(name) is old:
                setattr(other, name, new)


def _put_class(old: type, new: type) -> None:
    for name, value in vars(new).items():
        if name in ("__dict__", "__weakref__", "__doc__", "__class_getitem__", "__subclasshook__", "__init_subclass__"):
            continue
        before = vars(old).get(name)
        if isinstance(value, types.MemberDescriptorType) or _put_code(before, value):
            continue
        if isinstance(before, type) and isinstance(value, type):
            _put_class(before, value)
        elif isinstance(value, int | float | str | tuple | bool) and before != value:
            setattr(old, name, value)


def _put_code(old: Any, new: Any) -> bool:
    """Give a function the code and the defaults of another; whether there was one."""
    if isinstance(old, property) and isinstance(new, property):
        put = [_put_code(getattr(old, part), getattr(new, part)) for part in ("fget", "fset", "fdel")]
        return all(put)
    before, after = _function(old), _function(new)
    if before is None or after is None:
        return old is None and new is None
    if before.__code__.co_freevars == after.__code__.co_freevars:
        before.__code__ = after.__code__
        before.__defaults__, before.__kwdefaults__ = after.__defaults__, after.__kwdefaults__
    if hasattr(old, "cache_clear"):
        old.cache_clear()
    return True


def _function(value: Any) -> types.FunctionType | None:
    """The function under decorators, class methods and cached properties."""
    for name in ("__func__", "func", "__wrapped__"):
        value = getattr(value, name, value)
    return value if isinstance(value, types.FunctionType) else None
