"""What a notebook's `parameters` cell promises, and whether a value keeps it; decided before anything runs.

Each line of the cell is `name: type = default  # help [limits]`:

- type: `bool`, `int`, `float`, `str`, `list`, `dict`, `list[T]`, `dict[str, T]`, any of them `| None`;
- default: a literal;
- help: one clause for `lth notebooks`;
- limits, optional, at the comment's end: `[0 < x <= 1]`, `[x >= 1]`, or `[one of digits, mnist, folder:*]`, where `*`
  stands for any text. Limits hold for every item of a list or dict.
"""

import ast
import io
import math
import operator
import re
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from lthlib.errors import InputError, unknown
from lthlib.workbook.plain_yaml import read_yaml

SCALARS: dict[str, type] = {"bool": bool, "int": int, "float": float, "str": str}
# The runner fills these, from --profile and --out.
RESERVED = {"profile": "--profile", "out_dir": "--out"}

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"(?:(?P<low>{_NUMBER})\s*(?P<above><=?)\s*)?x(?:\s*(?P<sign><=?|>=?)\s*(?P<bound>{_NUMBER}))?")
_COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


@dataclass(frozen=True)
class Kind:
    """A type annotation: `name` of the type, the kind of its `items` if any, and whether None is allowed too."""

    name: str
    items: "Kind | None" = None
    optional: bool = False

    def __str__(self) -> str:
        key = "str, " if self.name == "dict" else ""
        return self.name + (f"[{key}{self.items}]" if self.items else "") + (" | None" if self.optional else "")


@dataclass(frozen=True)
class Limits:
    """What a value must satisfy beyond its type: comparisons with numbers, or a list of choices; `text` says it."""

    text: str
    bounds: tuple[tuple[str, float], ...] = ()
    choices: tuple[str, ...] = ()

    def allow(self, value: object) -> bool:
        """Whether one scalar is within the limits."""
        if self.choices:
            return any(fnmatchcase(str(value), choice) for choice in self.choices)
        return isinstance(value, int | float) and all(_COMPARE[sign](value, bound) for sign, bound in self.bounds)


@dataclass(frozen=True)
class Parameter:
    """One line of a notebook's parameters cell."""

    name: str
    kind: Kind
    default: Any
    help: str
    limits: Limits | None = None

    def check(self, value: object) -> Any:
        """`value` as this parameter takes it (an int given for a float becomes one); InputError if it does not fit."""
        try:
            converted = _convert(value, self.kind)
        except (TypeError, OverflowError, RecursionError) as error:
            valid = f"valid: {self.kind}, such as {_short(self.default)}"
            raise InputError(f"{self.name}: {_short(value)} is {error} ({valid})") from error
        for item in _scalars(converted):
            if self.limits and item is not None and not self.limits.allow(item):
                raise InputError(f"{self.name}: {_short(item)} is out of range (valid: {self.limits.text})")
        return converted

    def read(self, text: str) -> Any:
        """The value of the text after `--set NAME=`: YAML, but taken letter by letter where the parameter is a str."""
        if self.kind.name == "str" and not (self.kind.optional and text in ("null", "~", "")):
            return self.check(text)
        try:
            value = read_yaml(text)
        except InputError as error:
            raise InputError(f"{self.name}: {_short(text)} is {error} (valid: {self.kind})") from error
        return self.check(value)


def read_cell(source: str, where: str) -> dict[str, Parameter]:
    """The parameters of one `parameters` cell, in order; InputError, naming `where` and the line, if unclear."""
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise InputError(f"{where}: the parameters cell is not Python ({error.msg}, line {error.lineno})") from error
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    parameters: dict[str, Parameter] = {}
    for statement in statements:
        here = f"{where}: parameters cell, line {statement.lineno}"
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            raise InputError(f"{here}: expected `name: type = default  # help`, got `{ast.unparse(statement)}`")
        last = statement.end_lineno or statement.lineno
        comment = " ".join(comments[line] for line in range(statement.lineno, last + 1) if line in comments)
        name = statement.target.id
        if name in parameters:
            raise InputError(f"{here}: {name!r} is given twice")
        parameters[name] = _parameter(name, statement, comment, here)
    return parameters


def check_all(parameters: Mapping[str, Parameter], values: Mapping[str, object]) -> dict[str, Any]:
    """The defaults overridden by `values`, each checked; one InputError with a line for every value that is wrong."""
    checked = {name: parameter.default for name, parameter in parameters.items()}
    problems = []
    for name, value in values.items():
        try:
            if name not in parameters:
                raise unknown("parameter", name, parameters)
            checked[name] = parameters[name].check(value)
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))
    return checked


def _parameter(name: str, statement: ast.AnnAssign, comment: str, here: str) -> Parameter:
    try:
        kind = _kind(statement.annotation)
    except TypeError as error:
        types = f"{', '.join(SCALARS)}, list, dict, list[T], dict[str, T], each with `| None`"
        raise InputError(f"{here}: {name} has the type {error} (valid: {types})") from error
    try:
        default = ast.literal_eval(statement.value) if statement.value else None
    except ValueError as error:
        raise InputError(f"{here}: the default of {name} is not a literal; derive values in a later cell") from error
    help_text, limits = _limits(comment, kind, here)
    parameter = Parameter(name, kind, default, help_text, limits)
    try:
        return Parameter(name, kind, parameter.check(default), help_text, limits)
    except InputError as error:
        raise InputError(f"{here}: default of {error}") from error


def _kind(node: ast.expr) -> Kind:
    """The kind of an annotation; TypeError, with its text, where it is none of the known ones."""
    match node:
        case ast.Name(id=name) if name in SCALARS or name in ("list", "dict"):
            return Kind(name)
        case ast.Subscript(value=ast.Name(id="list"), slice=items):
            return Kind("list", _kind(items))
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[ast.Name(id="str"), items])):
            return Kind("dict", _kind(items))
        case ast.BinOp(left=kind, op=ast.BitOr(), right=ast.Constant(value=None)):
            plain = _kind(kind)
            return Kind(plain.name, plain.items, optional=True)
    raise TypeError(f"`{ast.unparse(node)}`")


def _limits(comment: str, kind: Kind, here: str) -> tuple[str, Limits | None]:
    """Splits a comment into its help and the limits in brackets at its end."""
    bracket = re.fullmatch(r"(?P<help>.*?)\s*\[(?P<limits>[^\[\]]*)\]\s*", comment)
    if not bracket:
        return comment.strip(), None
    text = bracket["limits"].strip()
    scalar = kind
    while scalar.items:
        scalar = scalar.items
    if text.startswith("one of ") and scalar.name == "str":
        choices = tuple(choice.strip() for choice in text.removeprefix("one of ").split(","))
        return bracket["help"], Limits(", ".join(choices), choices=choices)
    span = _RANGE.fullmatch(text)
    if span and scalar.name in ("int", "float") and (span["low"] or span["sign"]):
        bounds = []
        if span["low"]:
            bounds.append((span["above"].replace("<", ">"), float(span["low"])))
        if span["sign"]:
            bounds.append((span["sign"], float(span["bound"])))
        if len(bounds) == 1 or bounds[1][0].startswith("<"):
            return bracket["help"], Limits(text, bounds=tuple(bounds))
    raise InputError(
        f"{here}: cannot read the limits [{text}] of a {kind} (valid: `[0 < x <= 1]` or `[x >= 1]` for numbers,"
        " `[one of a, b]` for str)"
    )


def _convert(value: object, kind: Kind | None) -> Any:
    """`value` as `kind` (None: any value that JSON can hold); TypeError saying what it is instead."""
    if value is None and (kind is None or kind.optional):
        return None
    if type(value) is int and kind is not None and kind.name == "float":
        value = float(value)
    name = type(value).__name__
    if name not in (*SCALARS, "list", "dict") or (kind is not None and kind.name != name):
        raise TypeError("null" if value is None else f"{'an' if name == 'int' else 'a'} {name}")
    items = kind.items if kind else None
    if isinstance(value, list):
        return [_convert(item, items) for item in value]
    if isinstance(value, dict):
        return {_convert(key, Kind("str")): _convert(item, items) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        raise TypeError("a float that is not finite")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise TypeError("a str that is not valid Unicode") from error
    return value


def _scalars(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _scalars(item)
    else:
        yield value


def _short(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."
