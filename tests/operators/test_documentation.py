"""docs/operators.md has a row for every operator, and says of it what the code says."""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from pathlib import Path

import pytest
from operator_battery import ALL

from posterior import operators
from posterior.operators import Compose, Operator
from posterior.operators.compose import Bound
from posterior.operators.matrix import Flattened

TEXT = (Path(__file__).parents[2] / "docs" / "operators.md").read_text()
COLUMNS = ["operator", "equation", "shape of y", "linear", "pseudo-inverse", "methods"]
BY_FUNCTION = {"MatrixOperator": "from_matrix", "BlackBox": "from_callable"}
CONTRACTS = {"Operator", "NoiseModel", "as_noise_model", "Masking", "Tomography", *BY_FUNCTION}


def rows() -> dict[str, list[list[str]]]:
    """The cells of every row of the tables of operators, by the names in its first cell."""
    out: dict[str, list[list[str]]] = defaultdict(list)
    inside = False
    for line in TEXT.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not line.startswith("|"):
            inside = False
        elif cells == COLUMNS:
            inside = True
        elif inside and not set(line) <= set("|-"):
            names = [m.split("(")[0] for m in re.findall(r"`([^`]*)`", cells[0])]
            for name in dict.fromkeys(names):
                out[name].append(cells)
    return out


ROWS = rows()


def parts(operator: Operator) -> list[Operator]:
    """The operators that one is made of, and itself."""
    if isinstance(operator, Bound):
        return parts(operator.operator)
    if type(operator) is Compose:
        return [operator, *parts(operator.outer), *parts(operator.inner)]
    return [operator]


def made() -> dict[str, list[Operator]]:
    """Operators of the battery, by the name of their class or function."""
    out: dict[str, list[Operator]] = defaultdict(list)
    for case in ALL:
        size = 8 if case.power_of_two else 6 * case.multiple
        for operator in parts(case.make(case.channels, size, size)):
            name = type(operator).__name__
            if isinstance(operator, Flattened):
                name = "from_matrix"
            elif isinstance(operator, operators.BlackBox):
                name = "from_callable"
            out[name].append(operator)
    return out


def test_every_operator_has_a_row() -> None:
    for name in operators.__all__:
        kind = getattr(operators, name)
        if not (isinstance(kind, type) and issubclass(kind, Operator)) or inspect.isabstract(kind):
            continue
        assert BY_FUNCTION.get(name, name) in ROWS, name
    for name, found in ROWS.items():
        assert all(len(cells) == len(COLUMNS) for cells in found), name
        assert all(all(cells) for cells in found), name


def test_every_public_name_is_in_the_text() -> None:
    missing = {n for n in operators.__all__ if not re.search(rf"\b{n}\b", TEXT)}
    assert missing <= CONTRACTS


MADE = made()


@pytest.mark.parametrize("name", sorted(set(ROWS) & set(MADE)))
def test_the_row_says_what_the_operator_says(name: str) -> None:
    there, instances = ROWS[name], MADE[name]
    linear = {cells[3] for cells in there}
    if linear <= {"yes", "no"}:
        assert {op.linear for op in instances} <= {word == "yes" for word in linear}
    inverse = {cells[4].split(";")[0] for cells in there}
    if inverse == {"none"}:
        assert not any(op.has_pinv for op in instances)
    elif "none" not in inverse:
        assert any(op.has_pinv for op in instances)
    for cells in there:
        if cells[3] == "no":
            assert "MCG" not in cells[5]
            assert "DDS" not in cells[5]


def test_the_table_is_compared_with_operators_of_all_kinds() -> None:
    assert len(set(ROWS) & set(MADE)) >= 40
