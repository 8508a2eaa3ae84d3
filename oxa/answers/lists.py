r"""Lists, tuples, sets and matrices, item by item: `1, 2`, `(1, 2)`, `\{1, 2\}`, `x = 1` or `x = 2`, `(a, b) = (1, 2)`.

Tuples are compared in their order, lists without parentheses and sets in any. Named values are compared by name, but
for names that differ in their index alone (x_1, x_2), whose order is often the solver's choice. Nothing is told where
only order or repetition differs, and order may not have been meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from oxa.answers import expressions, numbers, quantities, structure
from oxa.answers.relations import UNDECIDED, Decision, Equal, is_name, value_of
from oxa.answers.structure import Items


def items(text: str, equal: Equal) -> Items | None:
    r"""The items of a list, with \pm written out; a named tuple is a list of named values."""
    amount = quantities.read(text)
    if amount is not None and amount.number is not None:
        return None  # its commas are of thousands
    if (named := _named_tuple(text) or _named_solutions(text, equal)) is not None:
        return named
    sides, signs = structure.relation(text)
    if set(signs) == {"="} and len(signs) > 1 and all(map(is_name, sides[:-1])):  # x = y = 1
        return Items(tuple(f"{side}={sides[-1]}" for side in sides[:-1]), "bare")
    many = structure.items(text)
    if many is not None and many.kind in ("tuple", "list") and _num_signs(text) == 1:
        many = None  # (\\pm 1, 0) is two points
    parts = _one_name(tuple(map(_point, many.parts))) if many is not None else (text,)
    written_out = [sign for part in parts for sign in structure.signs(part)]
    if many is None and len(written_out) == 1:
        return None
    return Items(tuple(written_out), many.kind if many is not None else "bare")


_POINT = re.compile(r"([ABD-MO-Z]'*)\s*(\(.*\))")


def _point(text: str) -> str:
    """A(1, 2) as A = (1, 2)."""
    match = _POINT.fullmatch(text)
    return f"{match[1]}={match[2]}" if match and structure.items(match[2]) is not None else text


def _named_tuple(text: str) -> Items | None:
    """(a, b) = (2, 1) as a = 2, b = 1."""
    sides, signs = structure.relation(text)
    if signs != ["="]:
        return None
    names, values = structure.items(sides[0]), structure.items(sides[1])
    if (
        names is None
        or values is None
        or len(names.parts) != len(values.parts)
        or names.kind != "tuple"
        or values.kind == "bare"
    ):
        return None
    if not all(map(is_name, names.parts)):
        return None
    return Items(
        tuple(f"{name}={value}" for name, value in zip(names.parts, values.parts, strict=True)), "named"
    )


_TUPLE_NAME = re.compile(r"\([A-Za-z](?:\s*,\s*[A-Za-z])+\)\s*=\s*(?=\()")


def _one_name(parts: tuple[str, ...]) -> tuple[str, ...]:
    """`(x, y) = (2, 1)` and `(1, 2)`: the name is of both."""
    name = _TUPLE_NAME.match(parts[0]) if parts else None
    return (
        tuple(name[0] + part if part.startswith("(") and "=" not in part else part for part in parts)
        if name
        else parts
    )


_CASES = re.compile(rf"{structure.OR.pattern}|\s*;\s*")


def _named_solutions(text: str, equal: Equal) -> Items | None:
    """`x = 1, y = 6` or `x = 6, y = 1` as (1, 6), (6, 1)."""
    solutions = [structure.items(part) for part in structure.split(text, _CASES)]
    if len(solutions) < 2:
        return None
    names = [_names(solution.parts) if solution is not None else None for solution in solutions]
    if None in names or any(name != names[0] for name in names) or len(set(names[0] or ())) < 2:
        return None
    tuples = (
        f"({', '.join(value_of(part, equal) for part in solution.parts)})"
        for solution in solutions
        if solution is not None
    )
    return Items(tuple(tuples), "bare")


def compare(gold: str, answer: str, equal: Equal) -> Decision:
    """Where one of the texts is a list at least."""
    golds, answers = tuple(structure.signs(gold)), tuple(structure.signs(answer))
    if len(golds) == len(answers) == 2 and _in_any_order(golds, answers, equal):
        return True, True
    verdict, decided = _compare(gold, answer, equal)
    signs = [_num_signs(text) for text in (gold, answer)]
    together = any(
        _num_signs(part) > 1 for text in (gold, answer) for part in (structure.items(text) or [[text]])[0]
    )
    if max(signs) > 1 and (verdict is False or (verdict and together and 0 in signs)):
        return None, True  # signs may be meant to go together, or not
    if verdict and _connectives(gold) | _connectives(answer) == {"and", "or"} and _has_names(gold):
        return (None if _connectives(gold) and _connectives(answer) else True), True
    return verdict, decided


def _num_signs(text: str) -> int:
    return text.count(r"\pm") + text.count(r"\mp")


def _connectives(text: str) -> set[str]:
    words = re.findall(r"(?<![A-Za-z])(and|or)(?![A-Za-z])", re.sub(r"\\l(?=and|or)", " ", text))
    return set(words)


def _has_names(text: str) -> bool:
    return "=" in text or r"\l" in text


def _compare(gold: str, answer: str, equal: Equal) -> Decision:
    letters = [match[1] if (match := _POINT.fullmatch(text)) else None for text in (gold, answer)]
    if None not in letters and letters[0] != letters[1]:
        return None, True
    first, second = items(_unnamed_list(gold), equal), items(_unnamed_list(answer), equal)
    if first is None and second is None:
        return UNDECIDED
    if first is None or second is None:
        many, one, text = (first, answer, gold) if first is not None else (second, gold, answer)
        if re.fullmatch(r"[+-]?[\d.]+,\d+|[A-Z]\s*\(.*", text):
            return None, True  # a decimal comma or a list of two; permutations or a point
        assert many is not None
        forms = structure.alternatives(text)
        if len(forms) > 1 and all(equal(one, form) and equal(forms[0], form) for form in forms):
            return True, True  # one value in several forms
        value = value_of(one, equal)
        read = quantities.sound(value)
        if (
            read is not None
            and quantities.is_constant(read)
            and "i" not in value
            and many.kind != "named"
            and _are_values(many.parts, equal)
            and any(equal(many.parts[0], part) is False for part in many.parts[1:])
        ):
            return (None if equal(one, "+".join(many.parts)) else False), True  # 6 and 1/4
        return None, quantities.sound(value) is None
    names = [_names(many.parts) for many in (first, second)]
    if names[0] and names[1]:
        return _equal_named(first, second, equal), True
    if "named" in (first.kind, second.kind) and {first.kind, second.kind} & {"tuple", "list"}:
        first, second = (
            Items(tuple(value_of(part, equal) for part in many.parts), "tuple") for many in (first, second)
        )
        return _in_order(first.parts, second.parts, equal, certain=True), True
    equations = [
        many
        for many, name in zip((first, second), names, strict=True)
        if not name and "=" in "".join(many.parts)
    ]
    if (names[0] or names[1]) and not equations:  # y = 2x against 2x - y = 0
        distinct = names[0] or names[1]
        assert distinct is not None
        first, second = (
            Items(tuple(value_of(part, equal) for part in many.parts), many.kind) for many in (first, second)
        )
        if len(distinct) > 1 and len(set(distinct)) == 1 and {first.kind, second.kind} & {"tuple", "list"}:
            return None, True  # two values of one variable are no point
        if len({re.sub(r"_.*", "", name) for name in distinct}) > 1:
            return _in_order(first.parts, second.parts, equal, certain=False), True
        return _in_any_order(first.parts, second.parts, equal), True
    ordered = ("tuple", "list")
    if first.kind in ordered and second.kind in ordered:
        return _in_order(first.parts, second.parts, equal, certain=True), True
    if first.kind in ordered or second.kind in ordered:
        if "set" in (first.kind, second.kind) or _connectives(gold) | _connectives(answer):
            return None, True
        return _in_order(first.parts, second.parts, equal, certain=False), True
    return _in_any_order(first.parts, second.parts, equal), True


_ONE_NAME = re.compile(
    r"(?:\\?[A-Za-z](?:_\{?\w+\}?)?\s*(?:=|\\in(?![A-Za-z]))|\([a-z, ]+\)\s*\\in(?![A-Za-z]))"
    r"\s*(?=\\?[{(\[]|\\pm|[^=]*$)"
)


def _unnamed_list(text: str) -> str:
    r"""Without a single name before a list: `x = 1, 2`, `x = \pm 2`, `x \in \{1, 2\}`."""
    if (point := _POINT.fullmatch(text)) and structure.items(point[2]) is not None:
        return point[2]
    match = _ONE_NAME.match(text)
    return (
        text[match.end() :]
        if (match and structure.items(text) is not None)
        or (match and r"\pm" in text)
        or (match and r"\in" in match[0])
        else text
    )


def _are_values(parts: tuple[str, ...], equal: Equal) -> bool:
    return all(
        numbers.number(value_of(part, equal)) is not None
        or quantities.sound(value_of(part, equal)) is not None
        for part in parts
    )


def _distinct(parts: tuple[str, ...], equal: Equal) -> list[str]:
    kept: list[str] = []
    for part in parts:
        if not any(equal(part, other) for other in kept):
            kept.append(part)
    return kept


def _names(parts: tuple[str, ...]) -> list[str] | None:
    """The names of values that all have one."""
    names = []
    for part in parts:
        sides, signs = structure.relation(part)
        if "=" not in signs or not is_name(sides[0]):
            return None
        names.append(re.sub(r"[\s{}]", "", sides[0]))
    return names


def _equal_named(first: Items, second: Items, equal: Equal) -> bool | None:
    gold_names, answer_names = _names(first.parts), _names(second.parts)
    assert gold_names is not None
    assert answer_names is not None
    golds, answers = (tuple(value_of(part, equal) for part in many.parts) for many in (first, second))
    if len(set(gold_names)) < len(gold_names) or len(set(answer_names)) < len(answer_names):
        if len({name.partition("_")[0] for name in (*gold_names, *answer_names)}) > 1:
            return None
        return _in_any_order(golds, answers, equal)
    if set(gold_names) != set(answer_names):
        return (
            False
            if len(golds) != len(answers) and _are_values(golds, equal) and _are_values(answers, equal)
            else None
        )
    by_name = dict(zip(answer_names, answers, strict=True))
    verdict = all_equal(equal(value, by_name[name]) for name, value in zip(gold_names, golds, strict=True))
    if verdict is False and len({re.sub(r"_.*", "", name) for name in gold_names}) == 1:
        return (
            None if _in_any_order(golds, answers, equal) else False
        )  # x_1 and x_2 are often one's own to name
    return verdict


def _in_order(
    golds: tuple[str, ...], answers: tuple[str, ...], equal: Equal, *, certain: bool
) -> bool | None:
    if len(golds) != len(answers):
        return False if _are_values(golds, equal) and _are_values(answers, equal) else None
    verdict = all_equal(equal(a, b) for a, b in zip(golds, answers, strict=True))
    if verdict is False and not certain and _in_any_order(golds, answers, equal):
        return None
    return verdict


def _in_any_order(golds: tuple[str, ...], answers: tuple[str, ...], equal: Equal) -> bool | None:
    """Whether each gold has an answer of its own; False where that is certain."""
    exact = [
        [number.value for part in parts if (number := numbers.number(part))] for parts in (golds, answers)
    ]
    if len(exact[0]) == len(golds) and len(exact[1]) == len(answers) and sorted(exact[0]) == sorted(exact[1]):
        return True
    rest, doubt = list(answers), False
    for gold in golds:
        verdicts = [equal(gold, answer) for answer in rest]
        if True in verdicts:
            rest.pop(verdicts.index(True))
        elif None in verdicts or (
            not rest and not (_are_values(golds, equal) and _are_values(answers, equal))
        ):
            doubt = True
        else:
            return _repeated(golds, answers, equal)
    if doubt:
        return None
    return True if not rest else _repeated(golds, answers, equal)


def _repeated(golds: tuple[str, ...], answers: tuple[str, ...], equal: Equal) -> bool | None:
    """None where only repetitions tell the two apart (a double root said once or twice)."""
    first, second = _distinct(golds, equal), _distinct(answers, equal)
    if len(first) == len(golds) and len(second) == len(answers):
        return (
            False
            if (_are_values(golds, equal) and _are_values(answers, equal)) or len(first) != len(second)
            else None
        )
    every = all(any(equal(a, b) for b in second) for a in first)
    return None if every and len(first) == len(second) else False


def all_equal(verdicts: Iterable[bool | None]) -> bool | None:
    """True of nothing but True, False where one is, else None."""
    doubt = False
    for verdict in verdicts:
        if verdict is False:
            return False
        doubt |= verdict is None
    return None if doubt else True


def compare_matrices(gold: str, answer: str, equal: Equal) -> Decision:
    """Where one of the texts is a matrix at least."""
    first, second = _matrix(gold, equal), _matrix(answer, equal)
    if first is None and second is None:
        return UNDECIDED
    if first is None or second is None:
        form, other = (first, answer) if first is not None else (second, gold)
        assert form is not None
        tuple_ = structure.items(other)
        if tuple_ is None or tuple_.kind not in ("tuple", "list") or min(len(form), len(form[0])) != 1:
            return UNDECIDED
        cells = [cell for row in form for cell in row]
        if len(cells) != len(tuple_.parts):
            return None, True
        pairs = zip(cells, tuple_.parts, strict=True)
        return all_equal(equal(a, b) for a, b in pairs), True
    if [len(row) for row in first] != [len(row) for row in second]:
        return (None if {len(first), len(first[0])} == {len(second), len(second[0])} else False), True
    pairs_of_cells = [pair for rows in zip(first, second, strict=True) for pair in zip(*rows, strict=True)]
    return all_equal(equal(a, b) for a, b in pairs_of_cells), True


def _matrix(text: str, equal: Equal) -> list[list[str]] | None:
    """A matrix's entries, with the factor before it."""
    form = structure.matrix(value_of(text, equal))
    if form is None:
        return None
    factor, rows = form
    factor = "-1" if factor == "-" else factor
    if factor and expressions.expression(factor) is None and numbers.number(factor) is None:
        return None
    return [[rf"{factor}\cdot ({cell})" if factor else cell for cell in row] for row in rows]
