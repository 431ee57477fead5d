"""Rules are data: `min(width_px, height_px) >= 512` in a YAML -> true, false or null for every row of a table.

The expression is parsed with Python's `ast` into a restricted tree, checked once against the columns' types, and
evaluated on whole Arrow columns with Kleene logic: what was not scored makes a comparison null, and null decides only
where the rest of the expression does not (`false and null` is false). Nothing in it can call, index or import.

    and or not   < <= > >= == != (chained too)   + - * /   min(...) max(...)   numbers 'text' true false   column names
"""

import ast
import difflib
import re
from collections.abc import Callable
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

Kind = Literal["number", "text", "bool"]
Value = Any  # a pyarrow Array, ChunkedArray or Scalar
_Node = tuple[Kind, Callable[[pa.Table], Value]]

_COMPARE: dict[type[ast.cmpop], Callable] = {
    ast.Lt: pc.less,
    ast.LtE: pc.less_equal,
    ast.Gt: pc.greater,
    ast.GtE: pc.greater_equal,
    ast.Eq: pc.equal,
    ast.NotEq: pc.not_equal,
}
_ARITHMETIC: dict[type[ast.operator], Callable] = {
    ast.Add: pc.add,
    ast.Sub: pc.subtract,
    ast.Mult: pc.multiply,
    ast.Div: pc.divide,
}
_EXTREMES = {"min": pc.min_element_wise, "max": pc.max_element_wise}
_BOOLS = {"true": True, "false": False}


def check_name(name: str) -> None:
    """Raises ValueError for a name that cannot be a reject_reason."""
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise ValueError(f"rule {name!r}: a name becomes a reject_reason; use lower case letters, digits and _")


class Rule:
    """A named expression that says which rows to keep.

    `columns` are the names that it reads. Raises ValueError when `keep` is not such an expression over `schema`; the
    message names the rule, what is wrong and, for an unknown column, its nearest neighbour.
    """

    _kind: Kind = "bool"  # of the whole expression

    def __init__(self, name: str, keep: str, schema: pa.Schema):
        self.name, self.keep = name, keep
        self.columns: list[str] = []
        self._schema = schema
        try:
            tree = ast.parse(keep.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise self._wrong(f"is not an expression ({error}); write for example `aspect <= 5`") from error
        self._evaluate = self._expect(self._kind, tree)

    def __call__(self, table: pa.Table) -> pa.BooleanArray:
        """true, false or null for each row of `table`."""
        value = self._evaluate(table)
        if isinstance(value, pa.Scalar):
            return pa.array([value.as_py()] * table.num_rows, pa.bool_())
        return value.combine_chunks() if isinstance(value, pa.ChunkedArray) else value

    def _wrong(self, what: str) -> ValueError:
        return ValueError(f"rule {self.name!r}: `{self.keep}` {what}")

    def _expect(self, kind: Kind, node: ast.expr) -> Callable[[pa.Table], Value]:
        found, evaluate = self._compile(node)
        if found != kind:
            raise self._wrong(f"has a {found} where a {kind} belongs: `{ast.unparse(node)}`")
        return evaluate

    def _compile(self, node: ast.expr) -> _Node:
        match node:
            case ast.Constant():
                return self._constant(node)
            case ast.Name():
                return self._column(node.id)
            case ast.BoolOp():
                combine = pc.and_kleene if isinstance(node.op, ast.And) else pc.or_kleene
                return "bool", _fold(combine, [self._expect("bool", part) for part in node.values])
            case ast.UnaryOp(op=ast.Not()):
                inner = self._expect("bool", node.operand)
                return "bool", lambda table: pc.invert(inner(table))
            case ast.UnaryOp(op=ast.USub()):
                inner = self._expect("number", node.operand)
                return "number", lambda table: pc.negate(inner(table))
            case ast.BinOp() if type(node.op) in _ARITHMETIC:
                sides = [self._expect("number", node.left), self._expect("number", node.right)]
                return "number", _fold(_ARITHMETIC[type(node.op)], sides)
            case ast.Compare():
                return self._comparison(node)
            case ast.Call(func=ast.Name(id=("min" | "max") as name), keywords=[]) if node.args:
                parts = [self._expect("number", part) for part in node.args]
                return "number", lambda table: _EXTREMES[name](*(part(table) for part in parts), skip_nulls=False)
        raise self._wrong(f"may not contain `{ast.unparse(node)}`; see the list of operators in stages/select/rules.py")

    def _constant(self, node: ast.Constant) -> _Node:
        kind: Kind
        match node.value:
            case bool():
                kind, scalar = "bool", pa.scalar(node.value)
            case int() | float():
                kind, scalar = "number", pa.scalar(float(node.value))
            case str():
                kind, scalar = "text", pa.scalar(node.value)
            case _:
                raise self._wrong(f"may not contain `{ast.unparse(node)}`; use numbers, text, true or false")
        return kind, lambda table: scalar

    def _column(self, name: str) -> _Node:
        if name in _BOOLS:
            scalar = pa.scalar(_BOOLS[name])
            return "bool", lambda table: scalar
        if name not in self._schema.names:
            near = difflib.get_close_matches(name, self._schema.names, n=1, cutoff=0.0)[0]
            raise self._wrong(f"names the unknown column {name!r}; did you mean {near!r}?")
        self.columns.append(name)
        type_ = self._schema.field(name).type
        if pa.types.is_boolean(type_):
            return "bool", lambda table: table[name]
        if pa.types.is_string(type_):
            return "text", lambda table: table[name]
        # Numbers are compared as floats: integer division by zero would raise, and one row would stop the run.
        return "number", lambda table: pc.cast(table[name], pa.float64())

    def _comparison(self, node: ast.Compare) -> _Node:
        parts = [self._compile(part) for part in [node.left, *node.comparators]]
        kinds = {kind for kind, _ in parts}
        if len(kinds) > 1:
            raise self._wrong(f"compares a {' with a '.join(sorted(kinds))}: `{ast.unparse(node)}`")
        links = []
        for op, (_, left), (_, right) in zip(node.ops, parts, parts[1:], strict=False):
            if type(op) not in _COMPARE:
                raise self._wrong(f"may not contain `{ast.unparse(node)}`; compare with < <= > >= == !=")
            links.append(_compare(_COMPARE[type(op)], left, right))
        return "bool", _fold(pc.and_kleene, links)


class Measure(Rule):
    """A number that a rule compares, such as `min(width_px, height_px)`."""

    _kind: Kind = "number"

    def __call__(self, table: pa.Table) -> pa.Array:
        """float64 or null for each row of `table`."""
        value = self._evaluate(table)
        if isinstance(value, pa.Scalar):
            return pa.array([value.as_py()] * table.num_rows, pa.float64())
        return value.combine_chunks() if isinstance(value, pa.ChunkedArray) else value


def _compare(compare: Callable, left: Callable, right: Callable) -> Callable[[pa.Table], Value]:
    return lambda table: compare(left(table), right(table))


def _fold(combine: Callable, parts: list[Callable[[pa.Table], Value]]) -> Callable[[pa.Table], Value]:
    def evaluate(table: pa.Table) -> Value:
        value = parts[0](table)
        for part in parts[1:]:
            value = combine(value, part(table))
        return value

    return evaluate
