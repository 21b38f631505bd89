"""Functions typed as text, such as `sin(2*pi*x) + x**2`: arithmetic only, read without `eval`."""

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from lthlib.errors import InputError, unknown

Array = np.ndarray[Any, Any]
LONGEST = 200  # characters
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "abs": np.abs,
    "tanh": np.tanh,
    "sign": np.sign,
    "floor": np.floor,
    "relu": lambda x: np.maximum(x, 0.0),
    "min": np.minimum,
    "max": np.maximum,
}
CONSTANTS = {"pi": math.pi, "e": math.e}
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.Mod: operator.mod,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
TWO = ("min", "max")


def parse(text: str, variable: str = "x") -> Callable[[Array], Array]:
    """The function that the text describes: float64 arrays of any shape to arrays of the same shape, elementwise.

    Numbers, `variable`, pi, e, + - * / % ** (also written ^) and the functions in FUNCTIONS. Every number is a float64,
    so that no power can grow without bound. Raises InputError, naming what is wrong, for anything else.
    """
    if not text.strip():
        raise InputError("the function is empty (valid: such as sin(2*pi*x))")
    if len(text) > LONGEST:
        raise InputError(f"the function has {len(text)} characters (valid: at most {LONGEST})")
    try:
        tree = ast.parse(text.strip().replace("^", "**"), mode="eval").body
        _check(tree, variable)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{text!r} is no function of {variable} (valid: such as sin(2*pi*{variable}))") from error

    def function(x: Array) -> Array:
        values = np.asarray(x, dtype=np.float64)
        with np.errstate(all="ignore"):
            return np.broadcast_to(np.asarray(_value(tree, variable, values), dtype=np.float64), values.shape).copy()

    return function


def _check(node: ast.expr, variable: str) -> None:
    match node:
        case ast.Constant(value=value) if isinstance(value, int | float) and not isinstance(value, bool):
            if not math.isfinite(_float(value)):
                raise InputError(f"the number {str(value)[:20]} is too large")
        case ast.Name(id=name):
            if name != variable and name not in CONSTANTS:
                raise unknown("name", name, (variable, *CONSTANTS, *FUNCTIONS))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            _check(left, variable)
            _check(right, variable)
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _UNARY:
            _check(operand, variable)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            if name not in FUNCTIONS:
                raise unknown("function", name, FUNCTIONS)
            if len(args) != (2 if name in TWO else 1):
                raise InputError(f"{name} takes {2 if name in TWO else 1} numbers, not {len(args)}")
            for argument in args:
                _check(argument, variable)
        case _:
            raise InputError(f"{ast.unparse(node)[:40]!r} is not arithmetic (valid: numbers, {variable}, + - * / % **)")


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _value(node: ast.expr, variable: str, x: Array) -> Any:
    match node:
        case ast.Constant(value=value):
            return np.float64(value)  # type: ignore[arg-type]
        case ast.Name(id=name):
            return x if name == variable else np.float64(CONSTANTS[name])
        case ast.BinOp(left=left, op=op, right=right):
            return _BINARY[type(op)](_value(left, variable, x), _value(right, variable, x))
        case ast.UnaryOp(op=sign, operand=operand):
            return _UNARY[type(sign)](_value(operand, variable, x))
        case ast.Call(func=ast.Name(id=name), args=args):
            return FUNCTIONS[name](*(_value(argument, variable, x) for argument in args))
    raise AssertionError(f"unchecked {node}")
