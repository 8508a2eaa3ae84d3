"""Hostile input: answers that no sane person gives, and names that would lead out of the project's folders."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from multiprocessing.process import ORIGINAL_DIR
from pathlib import Path
from typing import Any, NamedTuple

import processor_time
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from responses import write_problems, write_responses

from oxa import cli, errors
from oxa.config.params import check_params
from oxa.config.verify import Verify
from oxa.grading import worker as judge
from oxa.grading.extraction import Answer
from oxa.grading.grader import BATCH, IN_FLIGHT, Grader
from oxa.records import schemas, tables
from oxa.stages import verify

LIMIT = 0.5  # seconds of processor time
GOLD = "7"
WORKERS = 2

Item = tuple[list[str], str, str]


def item(golds: list[str], answer: str) -> Item:
    return golds, rf"<think>Some \boxed{{7}} reasoning.</think>It is $\boxed{{{answer}}}$.", "stop"


def matrix(size: int, name: str) -> str:
    lines = ("&".join(name.format(size * i + j) for j in range(size)) for i in range(size))
    return r"\begin{pmatrix}" + r"\\".join(lines) + r"\end{pmatrix}"


# What takes far longer than the limit, or more memory or stack than there is.
HANGS = {
    "tower of powers": "9^{9^{9^9}}",
    "short tower": "10^{10^{10}}",
    "difference of powers": r"10^{10^{9}} - 10^{10^{9}} + 3",
    "power against power": r"\frac{2^{10^{12}}}{2^{10^{12}-1}}",
    "negative tower": "2^{-9^{9^{9}}}",
    "root of a tower": r"\sqrt[9]{9^{9^{9}}}",
    "logarithm of a tower": r"\log_{10}(10^{10^{10^{2}}})",
    "huge decimal exponent": r"1.5 \times 10^{999999999999}",
    "exponent notation": "1e999999999",
    "factorial": "99999999999!",
    "factorial of a factorial": "((9!)!)!",
    "binomial": r"\binom{1000000}{500000}",
    "huge binomial": r"\binom{10^9}{10^8}",
    "sum": r"\sum_{n=1}^{100000000000} n^n",
    "product": r"\prod_{k=1}^{10000000} k",
    "nested sums": r"\sum_{a=1}^{999}\sum_{b=1}^{999}\sum_{c=1}^{999} \frac{1}{a+b+c}",
    "integral": r"\int_0^1 x^{x^{x^{x}}} dx",
    "iterated integral": r"\int_0^1\int_0^1\int_0^1 \sqrt{\sin(x y) + e^{y z}} dx dy dz",
    "repeated 0.1": "+".join(["0.1"] * 2_000),
    "brackets": "(" * 4000,
    "balanced brackets": "(" * 2000 + "1" + ")" * 2000,
    "square and round": "([" * 1500 + "])" * 1500,
    "left and right": r"\left(" * 500 + "3" + r"\right)" * 500,
    "braces": "{" * 300 + "3" + "}" * 300,
    "fractions": r"\frac{1}{" * 500 + "2" + "}" * 500,
    "nested radicals": r"\sqrt{2+" * 200 + "2" + "}" * 200,
    "nested powers": "x^{" * 400 + "x" + "}" * 400,
    "nested functions": r"\sin(\cos(" * 200 + "x" + "))" * 200,
    "absolute values": "|" * 3000 + "x" + "|" * 3000,
}
# Of these, what nothing but the limit ends.
LASTING = (
    *("tower of powers", "difference of powers", "negative tower", "root of a tower", "logarithm of a tower"),
    *("sum", "product", "nested sums", "integral"),
)
# What may or may not be read within the limit; it is not right either way.
SLOW = {
    "flat tower": "9^9^9^9",
    "nested exponent": r"e^{e^{e^{e^{e}}}}",
    "huge modulus": r"7^{10^{15}} \bmod 5",
    "sum of a trillion": r"\sum_{n=1}^{10^{12}} \frac{1}{n}",
    "limit": r"\lim_{x \to 0} \frac{\sin(\tan x) - \tan(\sin x)}{x^7 \cos(x^{x})}",
    "gamma": r"\Gamma(10^{12})",
    "zeta": r"\zeta(\frac{1}{2} + 10^{12} i)",
    "power of a polynomial": "(a+b+c+d+e+f+g+h)^{60} - (a+b+c+d+e+f+g+h)^{60}",
    "derivative": r"\frac{d}{dx} x^{x^{x^{x^{x}}}}",
    "imaginary": "i^{i^{i^{i}}}",
    "9,999 digits": "1" * 9_999,
    "long decimal": "0." + "3" * 9_000,
    "long product": r"\cdot".join(["2"] * 2_000),
    "long polynomial": "+".join(f"x^{{{i}}}" for i in range(800)),
    "continued fraction": r"\frac{1}{1+" * 60 + "1" + "}" * 60,
    "minus signs": "-" * 5000 + "1",
    "commas": "1," * 4000 + "1",
    "ampersands": "&" * 8000,
    "backslashes": "\\" * 9001,
    "dollars": "$" * 9000,
    "carets": "^" * 5000,
    "primes": "f" + "'" * 5000 + "(x)",
    "spaces": "1" + " " * 9_000 + "2",
    "words": "the answer is not here " * 400,
    "answer of an answer": "answer: " * 1200 + "2",
    "equals signs": "x = " * 2000 + "2 or 3",
    "combining marks": "2" + "\u0301" * 3000,
    "emoji": "🧮" * 500,
    "huge matrix": matrix(40, "1"),
    "inverse of a matrix": matrix(9, "x_{{{}}}") + "^{-1}",
    "power of a matrix": r"\begin{pmatrix}1&1\\1&0\end{pmatrix}^{10^{9}}",
    "union of intervals": r"\cup".join(f"({2 * i}, {2 * i + 1})" for i in range(300)),
    "big set": r"\{" + ",".join(map(str, range(1500))) + r"\}",
    "equation of high degree": "x^{97} + x^{53} - x + 1 = 0",
    "system of equations": "x^9+y^7=1, y^9+z^7=1, z^9+x^7=1",
    "chain of inequalities": r"1 < x < 2 < y < 3 < z \le x^{x^{x}}",
    "trigonometric identity": r"\prod_{k=1}^{40} \cos(k x) - \prod_{k=1}^{40} \cos(k y)",
}
# What looks like code. The parser may try many readings of it, which takes a slow machine longer than the limit.
CODE = {
    "python": r"__import__('os').system('touch owned')",
    "python as text": r"\text{__import__('os').system('touch owned')}",
    "eval": "eval(\"open('owned', 'w')\")",
    "exec": "exec(compile(\"open('owned','w')\",'a','exec'))",
    "lambda": "(lambda: open('owned', 'w'))()",
    "f-string": "f\"{open('owned', 'w')}\"",
    "format string": "{0.__class__.__mro__}",
    "attributes": "().__class__.__base__.__subclasses__()",
    "sympify": 'S(\'__import__("os").system("touch owned")\')',
    "arithmetic and python": "1+1 or open('owned','w')",
    "exit": r"\text{exit()}; import os; os._exit(0)",
    "pickle": "cos\nsystem\n(S'touch owned'\ntR.",
    "shell": "$(touch owned); `touch owned`",
    "shell without dollars": "; touch owned; rm -rf owned & true | tee owned",
    "write18": r"\immediate\write18{touch owned}",
    "input": r"\input{/etc/passwd}",
    "template": "{{ ''.__class__ }}{% include 'owned' %}",
    "sql": "1'; DROP TABLE verdicts; --",
    "html": "<script>alert(1)</script>",
}
# What is read, or refused, at once.
QUICK = {
    "100 kB of digits": "7" * 100_000,
    "knuth arrows": r"3 \uparrow\uparrow\uparrow 3",
    "unbalanced box": r"\boxed{{\boxed{{7",
    "nested boxes": r"\boxed{" * 100 + "3" + "}" * 100,
    "several boxes": r"\boxed{7} \boxed{7} \boxed{3}",
    "box behind a box": r"7} and \boxed{3",
    "macro": r"\def\x{\x\x}\x",
    "endless macro": r"\def\x{\x}\x",
    "newcommand": r"\newcommand{\a}{\a\a}\a",
    "billion laughs": r"\def\a{9999999999}\def\b{\a\a\a\a}\def\c{\b\b\b\b}\c^\c^\c",
    "loop": r"\loop\iftrue\repeat",
    "csname": r"\csname boxed\endcsname{7}",
    "look-alikes": "２ ⁄ ３ ∕ ½ ²",
    "cyrillic": "х = 2а",
    "mathematical digits": "𝟐𝟑",
    "arabic digits": "٢٣",
    "right to left": "\u202e21\u202c\u200b",
    "zero width": "2\u200b1\u2060\ufeff",
    "null and lone surrogate": "2\x00\ud800",
    "null alone": "\x00",
    "control characters": "".join(map(chr, range(32))) + "2",
    "line separators": "2\u2028\u2029\x85\x0b\x0c",
    "byte order mark": "\ufeff\ufffe2",
    "ragged matrix": r"\begin{pmatrix}1&2\\3\end{pmatrix}",
    "unclosed cases": r"\begin{cases} x & y",
    "interval": r"(-\infty, \infty]",
    "interval backwards": "[7, 1)",
    "set": r"\{x \in \mathbb{R} : x > 2\}",
    "empty set": r"\emptyset",
    "percent": r"200\%\%\%",
    "units": r"3 \text{ cm}^{-2} \text{ per } \text{fortnight}",
    "infinity": r"\infty - \infty",
    "division by zero": r"\frac{1}{0}",
    "zero by zero": r"\frac{0}{0}",
    "nearly right": "7.0000001",
    "nearly right, exactly": r"\sqrt{49 + 10^{-30}}",
    "decimal": "0.33333333333333333333333333333333333333333333333",
    "spaces and commands": r"\,\;\quad\left\right",
    "date": "2024-07-07",
    "version": "7.7.7.7",
    "hedge": "3 and not 7, or 4, or 5",
}
ALLOWED = {name: {"timeout"} for name in LASTING} | {
    name: {"incorrect", "unsure", "unparsable", "timeout"}
    for name in [*HANGS, *SLOW, *CODE, *QUICK]
    if name not in LASTING
}
HOSTILE = HANGS | SLOW | CODE | QUICK
BENIGN = [
    ("1/2", r"50\%"),
    ("1234567", r"1{,}234{,}567"),
    ("7", r"\boxed{\boxed{7}}"),
    ("7", r"7 \text{ fortnights}"),
    (r"2\sqrt{3}", r"\sqrt{12}"),
    (r"\{1,2,3\}", r"\{3,2,1\}"),
    ("[1,7)", r"\left[1, 7\right)"),
    (r"\frac{x}{2}", "0.5x"),
    (r"\sum_{n=1}^{10} n", "55"),
    (r"\binom{7}{2}", "21"),
    (r"\begin{pmatrix}1&0\\0&1\end{pmatrix}", r"\begin{bmatrix}1&0\\0&1\end{bmatrix}"),
    ("1", r"100.00\%"),
]


class Counting(Grader):
    """Counts what goes to the workers."""

    num_messages = 0

    def _schedule(self, batch: Any, place: int) -> Any:
        self.num_messages += 1
        return super()._schedule(batch, place)


class Outcome(NamedTuple):
    verdicts: dict[str, str]  # of the hostile answers
    easy: list[str]
    num_messages: int
    seconds: float  # of processor time


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    """All hostile answers among a thousand easy ones, in one call."""
    items = [(None, item([str(i)], str(i + i % 2))) for i in range(1000)]
    items += [(name, item([GOLD], answer)) for name, answer in HOSTILE.items()]
    random.Random(0).shuffle(items)
    with Counting(Verify(timeout=LIMIT, workers=WORKERS)) as grader:
        start = processor_time.total()
        graded = [one.verdict for one in grader.grade([question for _, question in items])]
        seconds = processor_time.total() - start
    pairs = list(zip(items, graded, strict=True))
    return Outcome(
        {name: verdict for (name, _), verdict in pairs if name is not None},
        [verdict for (name, _), verdict in pairs if name is None],
        grader.num_messages,
        seconds,
    )


@pytest.mark.whole
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_answer_is_never_correct_and_gets_the_verdict_that_is_due(
    outcome: Outcome, name: str
) -> None:
    assert outcome.verdicts[name] in ALLOWED[name]


@pytest.mark.whole
def test_hostile_answers_cost_the_pool_their_own_limit_and_nothing_more(outcome: Outcome) -> None:
    assert Counter(outcome.easy) == {"correct": 500, "incorrect": 500}
    num_given_up = list(outcome.verdicts.values()).count("timeout")
    assert len(LASTING) <= num_given_up <= len(HANGS) + len(SLOW) + len(CODE)
    # each of them ends one message, whose rest makes another; the 200 are rests handed back for their time
    batches = 2 * IN_FLIGHT * WORKERS + 1
    assert outcome.num_messages <= batches + num_given_up + 200
    # each hostile answer may take its limit and a second, the rest about 40 s; a slow machine five times as long
    assert outcome.seconds < 5 * (num_given_up * (LIMIT + 1) + 40)


@pytest.mark.whole
def test_text_that_looks_like_code_does_nothing(outcome: Outcome) -> None:
    assert len(outcome.verdicts) == len(HOSTILE)
    assert not Path(ORIGINAL_DIR, "owned").exists()  # where the workers are


@pytest.mark.parametrize(
    "name",
    [
        *("tower of powers", "sum"),
        *(
            pytest.param(name, marks=pytest.mark.whole)
            for name in ("product", "integral", "nested sums", "negative tower")
        ),
    ],
)
def test_a_worker_ends_at_the_limit_whatever_it_computes(name: str, tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(
        "import sys, time\n"
        "from oxa.grading import worker\n"
        "from oxa.grading.extraction import Answer\n"
        "worker.start_worker(bytearray(1))\n"
        "sys.stdin.close()\n"
        "open(sys.argv[1], 'w').write(str(time.process_time()))\n"
        f"worker.judge_batch([(('7',), Answer(open(sys.argv[2]).read()))], {LIMIT}, 0)\n",
        encoding="utf-8",
    )
    (tmp_path / "answer").write_text(HOSTILE[name], encoding="utf-8")
    worker = subprocess.Popen(
        [sys.executable, script, tmp_path / "started", tmp_path / "answer"],
        stdin=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    _, status, usage = os.wait4(worker.pid, 0)
    worker.returncode = status
    used = usage.ru_utime + usage.ru_stime - float((tmp_path / "started").read_text())
    assert os.waitstatus_to_exitcode(status) in (-signal.SIGPROF, -signal.SIGSEGV)  # the latter: out of stack
    assert used < LIMIT + 1


def test_a_worker_near_the_end_of_its_memory_gives_up_its_answer_and_ends() -> None:
    context = multiprocessing.get_context("forkserver")
    notes = context.RawArray("B", 3)
    worker = context.Process(target=_hoard, args=[notes])
    worker.start()
    worker.join()
    assert worker.exitcode == 1
    assert [judge.CODES[code] for code in notes] == ["correct", "timeout", ""]


def _hoard(notes: Any) -> None:
    judge.start_worker(notes)
    judge.judge_batch([(("1",), Answer("1"))], 30, 0)
    held = b"x" * (judge.MEMORY // 2)
    assert held
    judge.judge_batch([(("1",), Answer("2")), (("1",), Answer("1"))], 30, 1)


def test_a_worker_cannot_take_more_than_its_memory_and_the_next_answers_are_graded() -> None:
    with Grader(Verify(timeout=30, workers=1)) as grader:
        assert grader.grade([item(["1"], "1.0")])[0].verdict == "correct"
        assert grader._pool is not None
        with pytest.raises(MemoryError):
            grader._pool.schedule(bytearray, args=[judge.MEMORY]).result()
        assert [one.verdict for one in grader.grade([item(["1"], "2"), item(["1"], "1")])] == [
            "incorrect",
            "correct",
        ]


class Unlucky(Grader):
    """The workers of its first messages are killed from outside."""

    num_kills = 0

    def _schedule(self, batch: Any, place: int) -> Any:
        future = super()._schedule(batch, place)
        if self.num_kills == 0:
            return future
        self.num_kills -= 1
        assert self._pool is not None
        assert future.exception() is None
        self._notes[place : place + BATCH] = bytes(BATCH)
        return self._pool.schedule(_end_itself)


def _end_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_an_answer_at_which_a_worker_was_killed_from_outside_is_asked_for_once_more() -> None:
    with Unlucky(Verify(timeout=30, workers=1)) as grader:
        for num_kills, verdict in ((1, "incorrect"), (2, "timeout"), (0, "incorrect")):
            grader.num_kills = num_kills
            assert grader.grade([item(["1"], f"2{num_kills}")])[0].verdict == verdict


def test_nothing_is_parsed_outside_the_workers(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import json, sys\n"
        "started = []\n"
        "def hook(event, arguments):\n"
        "    if event in ('os.system', 'os.posix_spawn', 'os.exec', 'subprocess.Popen', 'compile'):\n"
        "        started.append([event, repr(arguments)])\n"
        "from oxa.config.verify import Verify\n"
        "from oxa.grading.grader import Grader\n"
        "if __name__ == '__main__':\n"
        "    items = json.load(open(sys.argv[1]))\n"
        "    with Grader(Verify(timeout=30, workers=1)) as grader:\n"
        "        grader.grade([(['1'], '</think>1', 'stop')])\n"
        "        sys.addaudithook(hook)\n"
        "        grader.grade([tuple(item) for item in items])\n"
        "    heavy = {'sympy', 'math_verify', 'latex2sympy2_extended', 'antlr4', 'mpmath'} & set(sys.modules)\n"
        "    print(json.dumps([sorted(heavy), [one for one in started if 'owned' in one[1]]]))\n",
        encoding="utf-8",
    )
    (tmp_path / "items.json").write_text(
        json.dumps([item([GOLD], answer) for answer in (CODE | QUICK).values()])
    )
    done = subprocess.run(
        [sys.executable, script, tmp_path / "items.json"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [[], []]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["items.json", "parent.py"]


def test_the_stage_goes_through_hostile_rows(tmp_path: Path, log: Any) -> None:
    names = [*QUICK, "tower of powers", "brackets", "equals signs"]
    texts = [item([GOLD], HOSTILE[name])[1].encode(errors="replace").decode() for name in names]
    texts += ["", "\x00", "</think>" * 5000, "<think>" * 5000, r"\boxed{" * 20_000, item([GOLD], GOLD)[1]]
    rows = [("p", text, "length" if i % 3 else "stop") for i, text in enumerate(texts)]
    metrics = verify.run(
        Verify(timeout=LIMIT, workers=2),
        problems=write_problems(tmp_path / "problems.parquet", {"p": [GOLD]}),
        responses=write_responses(tmp_path / "responses.parquet", rows),
        output=tmp_path / "verdicts.parquet",
        log=log,
        scratch=tmp_path,
    )
    written = tables.read(tmp_path / "verdicts.parquet", schemas.VERDICTS).to_pylist()
    assert [row["response_id"] for row in written] == [f"r{i}" for i in range(len(rows))]
    assert [row["verdict"] for row in written].count("correct") == 1
    assert written[-1]["verdict"] == "correct"
    assert metrics["verdicts"]["correct"] == 1
    assert 1 <= metrics["verdicts"]["timeout"] <= 3


# ---- equivalent forms ----


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(Verify(timeout=30, workers=2)) as grader:
        yield grader


@pytest.mark.parametrize(("gold", "answer"), BENIGN)
def test_an_equivalent_answer_is_correct_either_way_round(grader: Grader, gold: str, answer: str) -> None:
    graded = grader.grade([item([gold], answer), item([answer], gold)])
    assert [one.verdict for one in graded] == ["correct", "correct"]


def spellings(value: Fraction) -> list[str]:
    """Ways to write a number that every reader takes for the same."""
    up, down, sign = abs(value.numerator), value.denominator, "-" if value < 0 else ""
    forms = [
        rf"{sign}\frac{{{up}}}{{{down}}}",
        rf"{sign}\dfrac{{{3 * up}}}{{{3 * down}}}",
        f"{sign}{up}/{down}",
    ]
    if down == 1:
        forms += [f"{sign}{up}", f"{sign}{up}.0", f"{sign}{up}.", f"x = {sign}{up}"]
        if up >= 1000:
            forms += [
                f"{sign}{up:,}",
                f"{sign}{up:,}".replace(",", "{,}"),
                f"{sign}{up:,}".replace(",", r"\,"),
            ]
    if 10**4 % down == 0:
        forms += [f"{float(value):.4f}", rf"{sign}{float(100 * abs(value)):.2f}\%"]
    return forms


values = st.one_of(
    st.integers(-9_999_999, 9_999_999).map(Fraction),
    st.builds(Fraction, st.integers(-999, 999), st.integers(1, 99)),
    st.builds(Fraction, st.integers(-9999, 9999), st.sampled_from([2, 4, 5, 8, 10, 16, 100, 1000])),
)
relaxed = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@relaxed
@given(value=values, data=st.data())
def test_a_number_is_correct_in_every_spelling_and_another_number_in_none(
    grader: Grader, value: Fraction, data: st.DataObject
) -> None:
    gold = data.draw(
        st.sampled_from([form for form in spellings(value) if "=" not in form and "%" not in form])
    )
    graded = [one.verdict for one in grader.grade([item([gold], form) for form in spellings(value)])]
    assert graded == ["correct"] * len(graded), list(zip(spellings(value), graded, strict=True))
    other = value + data.draw(st.sampled_from([1, -1, Fraction(1, 7), Fraction(-1, 7), 10]))
    wrong = [form for form in spellings(other) if "%" not in form]
    assert "correct" not in {one.verdict for one in grader.grade([item([gold], form) for form in wrong])}


@relaxed
@given(outer=st.integers(2, 30), inner=st.sampled_from([2, 3, 5, 6, 7, 10]), divisor=st.integers(2, 9))
def test_a_root_is_correct_in_every_spelling_and_another_root_in_none(
    grader: Grader, outer: int, inner: int, divisor: int
) -> None:
    square = outer * outer * inner
    forms = [
        rf"{outer}\sqrt{{{inner}}}",
        rf"\sqrt{{{square}}}",
        rf"{square}^{{1/2}}",
        rf"\frac{{{outer * inner}}}{{\sqrt{{{inner}}}}}",
        rf"\frac{{{divisor * outer}\sqrt{{{inner}}}}}{{{divisor}}}",
    ]
    graded = [one.verdict for one in grader.grade([item([forms[0]], form) for form in forms])]
    assert graded == ["correct"] * len(forms), list(zip(forms, graded, strict=True))
    wrong = [
        rf"\sqrt{{{square + 1}}}",
        rf"{outer + 1}\sqrt{{{inner}}}",
        rf"\sqrt[3]{{{square}}}",
        str(square),
    ]
    assert "correct" not in {one.verdict for one in grader.grade([item([forms[0]], form) for form in wrong])}


@relaxed
@given(first=st.integers(-50, 49), width=st.builds(Fraction, st.integers(1, 40), st.integers(1, 8)))
def test_pairs_intervals_and_sets_go_by_their_members_and_their_ends(
    grader: Grader, first: int, width: Fraction
) -> None:
    last = first + width
    low, high = str(first), rf"\frac{{{last.numerator}}}{{{last.denominator}}}"
    also = f"{last.numerator}/{last.denominator}"
    right = [
        (f"({low}, {high})", f"({low},{also})"),
        (f"[{low}, {high})", rf"\left[{low}, {also}\right)"),
        (rf"\{{{low}, {high}\}}", rf"\{{{also}, {low}\}}"),
        (
            f"{low} < x < {also}",
            f"({low}, {high})",
        ),  # not the other way round: math-verify takes no relation for a set
    ]
    graded = [one.verdict for one in grader.grade([item([gold], form) for gold, form in right])]
    assert graded == ["correct"] * len(right), list(zip(right, graded, strict=True))
    wrong = [
        (f"[{low}, {high})", f"({low}, {high}]"),
        (f"[{low}, {high}]", f"({low}, {high})"),
        (f"({low}, {high})", f"({low}, {high}+1)"),
        (rf"\{{{low}, {high}\}}", rf"\{{{low}\}}"),
        (f"{low} < x < {high}", rf"{low} \le x < {high}"),
    ]
    graded = [one.verdict for one in grader.grade([item([gold], form) for gold, form in wrong])]
    assert "correct" not in graded, list(zip(wrong, graded, strict=True))


# ---- nothing beside an answer changes its verdict ----


@pytest.mark.whole
@pytest.mark.parametrize(("workers", "seed"), [(1, 1), (2, 2), (2, 3)])
def test_a_verdict_depends_on_its_answer_alone(grader: Grader, workers: int, seed: int) -> None:
    rng = random.Random(seed)
    hostile = [(GOLD, HANGS[name]) for name in ("tower of powers", "sum", "integral")]
    pairs = [(GOLD, answer) for answer in QUICK.values()] + [*BENIGN, *((b, a) for a, b in BENIGN)]
    pairs += [(str(i % 7), str(i)) for i in range(40)]
    expected = {
        pair: one.verdict
        for pair, one in zip(pairs, grader.grade([item([a], b) for a, b in pairs]), strict=True)
    }
    mixed = [*pairs, *hostile]
    rng.shuffle(mixed)
    with Grader(Verify(timeout=2.0, workers=workers)) as other:
        verdicts: list[str] = []
        while len(verdicts) < len(mixed):  # calls of one answer and calls of many
            part = mixed[len(verdicts) : len(verdicts) + rng.choice([1, 2, 90])]
            verdicts += [one.verdict for one in other.grade([item([gold], answer) for gold, answer in part])]
    assert verdicts == [expected.get(pair, "timeout") for pair in mixed]


# ---- names that become paths ----


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `project` with `sources`, and a readable source beside it that nothing may reach."""
    folder = tmp_path / "project"
    for name in (folder / "sources", tmp_path / "owner/name"):
        name.mkdir(parents=True)
        (name / "train.jsonl").write_text('{"question": "What is 1 + 1?", "answer": "#### 2"}\n')
    monkeypatch.chdir(folder)
    return folder


def ingest(project: Path, **changes: Any) -> int:
    """Runs the stage on the small world with these keys of params.yaml changed, dots written as __."""
    params = yaml.safe_load((Path(__file__).resolve().parents[2] / "params.yaml").read_text())
    params["tracking"] = {"enabled": False}
    params["sources"]["world"] |= {"num_train": 20, "num_benchmark": 8}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        params[section][name] = value
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    names = ("problems", "responses", "rejects", "contamination", "metrics")
    return cli.main(["ingest", *(word for name in names for word in (f"--{name}", f"out/{name}"))])


@pytest.mark.parametrize(
    "source",
    [
        "../owner/name/train.jsonl",
        "/etc/passwd",
        "hf:../owner",
        "train\x00.jsonl",
        "loop.jsonl",
        *(
            pytest.param(source, marks=pytest.mark.whole)
            for source in (
                "sources/../../owner/name/train.jsonl",
                "hf:./..",
                "hf:../owner/name",
                "hf:owner/..",
                "x" * 300 + ".jsonl",
                "x/" * 3000 + "x.jsonl",
                "~/train.jsonl",
                "",
            )
        ),
    ],
)
@pytest.mark.parametrize("key", ["source", pytest.param("local", marks=pytest.mark.whole)])
def test_no_source_is_read_from_outside_its_folder(
    project: Path, capfd: pytest.CaptureFixture[str], source: str, key: str
) -> None:
    (project / "sources/loop.jsonl").symlink_to("loop.jsonl")
    if key == "local" and source.startswith("hf:"):
        source = source.removeprefix("hf:")
    row = {"source": "hf:owner/nobody-has-this", "mapping": "gsm8k", key: source}
    # 75: the file is not there, and the hub is out of reach
    assert ingest(project, ingest__teacher=[row]) in ((2,) if key == "source" else (2, 75))
    assert len([line for line in capfd.readouterr().err.splitlines() if line.startswith("oxa: ")]) == 1
    assert not list((project / "out").glob("*"))


def test_a_folder_is_not_read_in_the_place_of_the_hub_s_dataset_of_that_name(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (project.parent / "owner").rename(project / "owner")
    assert ingest(project, ingest__teacher=[{"source": "hf:owner/name", "mapping": "gsm8k"}]) == 2
    assert "owner/name is a folder here" in capfd.readouterr().err


def test_a_link_that_the_user_put_among_the_sources_is_followed(project: Path) -> None:
    (project / "sources/link.jsonl").symlink_to(project.parent / "owner/name/train.jsonl")
    assert ingest(project, ingest__teacher=[{"source": "link.jsonl", "mapping": "gsm8k"}]) == 0


@pytest.mark.parametrize(
    "name",
    ["../x", "a/b", "..", ".x", "", "x\n", "x\x00", "a b", "é", "-x", "~", "$x", "x" * 101, "a|b", "<b>"],
)
@pytest.mark.parametrize("what", ["arm", "benchmark", "model"])
def test_a_name_that_becomes_part_of_a_path_or_a_page_is_plain(project: Path, name: str, what: str) -> None:
    params = yaml.safe_load((Path(__file__).resolve().parents[2] / "params.yaml").read_text())
    if what == "arm":
        params["arms"].append(name)
        params["selection"]["ce"][name] = params["selection"]["ce"]["sft"]
        params["train"]["arms"][name] = params["train"]["arms"]["sft"]
    elif what == "benchmark":
        params["ingest"]["benchmarks"][name] = {"source": "world"}
    else:
        params["registry"]["model"] = name
        if name == "x" * 101:
            return  # MLflow's own matter: it names no file
    with pytest.raises(errors.ConfigError, match=r"pattern|at most 100|an arm's name"):
        check_params(params, "params.yaml")
