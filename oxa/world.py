"""The small world: sums that a million parameters can learn to work out, in four ways.

A problem asks for a + b. Two tiers: `easy`, two digits each, and `hard`, four digits each. Three wordings:

    What is 4821 + 3907?
    Calculate 4821 + 3907.
    Add 4821 and 3907.

A response is `<think> STRATEGY </think> \\boxed{8728}`. Four strategies, each in three wordings, the first common:

    mental   In my head this is 8728.
             A quick look gives 8728.
             I already know this one: 8728.
    columns  Columns: 1+7+0=8, 2+0+0=2, 8+9+0=17, 4+3+1=8. Together 8728.
             From right to left 1+7+0=8, 2+0+0=2, 8+9+0=17, 4+3+1=8. This reads 8728.
             Units come first: 1+7+0=8, 2+0+0=2, 8+9+0=17, 4+3+1=8. Collected upwards 8728.
    places   Places: 4+3=7, 8+9=17, 2+0=2, 1+7=8. With carries 8728.
             From left to right 4+3=7, 8+9=17, 2+0=2, 1+7=8. After carrying 8728.
             Pair the digits: 4+3=7, 8+9=17, 2+0=2, 1+7=8. Moving every ten up 8728.
    jumps    Jumps: 4821 +3000=7821 +900=8721 +0=8721 +7=8728.
             Starting at 4821 +3000=7821 +900=8721 +0=8721 +7=8728.
             Walk there in parts: 4821 +3000=7821 +900=8721 +0=8721 +7=8728.

In the corpus `mental` is the habit, and it does not carry far: it works on easy problems and mostly fails on hard
ones. The other strategies are rare there, but each works on both tiers. The corpus has two phases: in its first
`strategy_documents` documents the rare strategies are learnt, after them the habit sets in. Beside chats it holds
plain text: drills of the skills that all strategies need, and prose.

    copy     Copy 4821: 4821.
    reverse  Backwards 4821: 1, 2, 8, 4.
    table    Table: 7+8+1=16, 0+4+0=4, 9+9+1=19.
    prose    The old miller carries a stone to the river.

The teacher knows the strategies equally well, takes each in turn, in any wording, and makes a slip in a few
responses, as real teachers do: the sum that it states and boxes is off by one in one place.

An unordered pair {a, b} belongs to the corpus, to the training problems or to the benchmark, by its hash alone: the
three share no pair, whatever the seed. Operands such as 30 or 4000 are left out, so that no jump spells another
problem. Every draw comes from (seed, purpose, index); the same settings give the same text everywhere.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Literal, NamedTuple

from oxa import config
from oxa.errors import ConfigError

Split = Literal["corpus", "train", "benchmark"]

DIGITS = {"easy": 2, "hard": 4}
QUESTIONS = ("What is {a} + {b}?", "Calculate {a} + {b}.", "Add {a} and {b}.")
HABIT = "mental"
WORDINGS = {
    "mental": ("In my head this is {sum}.", "A quick look gives {sum}.", "I already know this one: {sum}."),
    "columns": (
        "Columns: {work}. Together {sum}.",
        "From right to left {work}. This reads {sum}.",
        "Units come first: {work}. Collected upwards {sum}.",
    ),
    "places": (
        "Places: {work}. With carries {sum}.",
        "From left to right {work}. After carrying {sum}.",
        "Pair the digits: {work}. Moving every ten up {sum}.",
    ),
    "jumps": ("Jumps: {work}{sum}.", "Starting at {work}{sum}.", "Walk there in parts: {work}{sum}."),
}
STRATEGIES = tuple(WORDINGS)

WORDING_WEIGHTS = (0.8, 0.14, 0.06)  # in the corpus; the teacher takes each wording equally often
HABIT_SHARE = (0.1, 0.75)  # of the corpus' chats, in the first phase and after it
DRILL_SHARE = (0.12, 0.03)  # of the corpus' documents
PROSE_SHARE = 0.02
EASY_SHARE = 1 / 3
SLIP_SHARE = 0.04  # of the teacher's responses
ATTEMPTS = 10_000  # draws for one new problem; far more than a pool with any left needs

PROSE = (
    ("The", "A", "One", "Every"),
    ("old", "small", "quiet", "tall", "young", "clever"),
    ("miller", "teacher", "child", "sailor", "farmer", "doctor", "painter"),
    ("carries", "sees", "brings", "takes", "sends", "shows"),
    ("a", "the", "one", "this"),
    ("stone", "book", "letter", "lamp", "boat", "basket", "map"),
    ("to", "near", "behind", "from"),
    ("the", "a", "that"),
    ("river", "house", "village", "garden", "bridge", "market", "school"),
)


@dataclass(frozen=True)
class Example:
    """A problem with its gold answer and the teacher's responses (none for a benchmark)."""

    question: str
    answer: str
    tier: str
    responses: tuple[str, ...]


class Document(NamedTuple):
    """A text to pretrain on: a response to `user`, or plain text outside a chat where `user` is None."""

    user: str | None
    text: str


def split_of(a: int, b: int) -> Split:
    """Who may use the pair: 70% corpus, 20% training, 10% benchmark."""
    part = hashlib.sha256(f"{min(a, b)}+{max(a, b)}".encode()).digest()[0] % 10
    return "benchmark" if part == 0 else "train" if part < 3 else "corpus"


def respond(a: int, b: int, strategy: str, wording: int, stated: int | None = None) -> str:
    """The response by a strategy in one of its wordings; `stated` replaces the sum that it states."""
    text = WORDINGS[strategy][wording].format(
        work=_WORK[strategy](a, b), sum=a + b if stated is None else stated
    )
    return f"<think> {text} </think> \\boxed{{{a + b if stated is None else stated}}}"


def opening(strategy: str, wording: int = 0) -> str:
    """The first words of a response by which one can force a strategy: `<think> Columns:`."""
    return "<think> " + WORDINGS[strategy][wording].partition(" {")[0]


def train_examples(world: config.World) -> Iterator[Example]:
    """The training problems with the teacher's responses."""
    return _examples(world, "train", world.num_train)


def benchmark_examples(world: config.World) -> Iterator[Example]:
    """The problems that nothing else holds."""
    return _examples(world, "benchmark", world.num_benchmark)


def corpus(world: config.World) -> Iterator[Document]:
    """An endless stream of documents to pretrain on."""
    for index in count():
        rng = _rng(world.seed, "corpus", index)
        phase = int(index >= world.strategy_documents)
        kind = rng.random()
        if kind < PROSE_SHARE:
            yield Document(None, " ".join(map(rng.choice, PROSE)) + ".")
        elif kind < PROSE_SHARE + DRILL_SHARE[phase]:
            yield Document(None, _drill(rng))
        else:
            a, b = _pair(rng, "corpus", "easy" if rng.random() < EASY_SHARE else "hard")
            if rng.random() < HABIT_SHARE[phase]:
                strategy = HABIT
            else:
                strategy = rng.choice([name for name in STRATEGIES if name != HABIT])
            wording = rng.choices(range(len(WORDING_WEIGHTS)), WORDING_WEIGHTS)[0]
            yield Document(rng.choice(QUESTIONS).format(a=a, b=b), respond(a, b, strategy, wording))


def guess_rate(examples: list[Example]) -> float:
    """Share of right answers when one always gives the tier's most frequent answer: what guessing can reach."""
    by_tier: dict[str, list[str]] = {}
    for example in examples:
        by_tier.setdefault(example.tier, []).append(example.answer)
    return sum(max(map(answers.count, set(answers))) for answers in by_tier.values()) / len(examples)


def _examples(world: config.World, split: Split, num: int) -> Iterator[Example]:
    seen: set[tuple[int, int]] = set()
    for index in range(num):
        tier = "easy" if index % 3 == 0 else "hard"
        rng = _rng(world.seed, split, index)
        for _ in range(ATTEMPTS):
            a, b = _pair(rng, split, tier)
            if (a, b) not in seen:
                break
        else:
            raise ConfigError(
                f"world: {num} problems of the {split} split were asked for, but it holds fewer {tier} ones"
            )
        seen.add((a, b))
        question = rng.choice(QUESTIONS).format(a=a, b=b)
        responses = _teach(rng, a, b, world.num_teacher) if split == "train" else ()
        yield Example(question, str(a + b), tier, responses)


def _teach(rng: random.Random, a: int, b: int, num: int) -> tuple[str, ...]:
    responses, order = [], rng.sample(STRATEGIES, len(STRATEGIES))
    for index in range(num):
        stated = a + b
        if rng.random() < SLIP_SHARE:
            stated += rng.choice((-1, 1)) * 10 ** rng.randrange(len(str(a)))
        wording = rng.randrange(len(WORDING_WEIGHTS))
        responses.append(respond(a, b, order[index % len(order)], wording, stated))
    return tuple(responses)


def _pair(rng: random.Random, split: Split, tier: str) -> tuple[int, int]:
    """Two operands of the tier that belong to the split."""
    low = 10 ** (DIGITS[tier] - 1)
    while True:
        a, b = rng.randrange(low, 10 * low), rng.randrange(low, 10 * low)
        if a % low and b % low and split_of(a, b) == split:
            return a, b


def _drill(rng: random.Random) -> str:
    kind = rng.choice(("copy", "reverse", "table"))
    if kind == "table":
        return (
            "Table: "
            + ", ".join(_fact(rng.randrange(10), rng.randrange(10), rng.randrange(2)) for _ in range(4))
            + "."
        )
    number = str(sum(_pair(rng, "corpus", rng.choice(tuple(DIGITS)))))
    return (
        f"Copy {number}: {number}."
        if kind == "copy"
        else f"Backwards {number}: {', '.join(reversed(number))}."
    )


def _fact(*terms: int) -> str:
    return f"{'+'.join(map(str, terms))}={sum(terms)}"


def _columns(a: int, b: int) -> str:
    facts, carry = [], 0
    for x, y in zip(reversed(str(a)), reversed(str(b)), strict=True):
        facts.append(_fact(int(x), int(y), carry))
        carry = (int(x) + int(y) + carry) // 10
    return ", ".join(facts)


def _places(a: int, b: int) -> str:
    return ", ".join(_fact(int(x), int(y)) for x, y in zip(str(a), str(b), strict=True))


def _jumps(a: int, b: int) -> str:
    """All but the last sum, which the wording states."""
    text, total, places = str(a), a, len(str(b))
    for place, digit in enumerate(str(b), 1):
        part = int(digit) * 10 ** (places - place)
        total += part
        text += f" +{part}={total if place < places else ''}"
    return text


_WORK: dict[str, Callable[[int, int], str]] = {
    "mental": lambda a, b: "",
    "columns": _columns,
    "places": _places,
    "jumps": _jumps,
}


def _rng(seed: int, purpose: str, index: int) -> random.Random:
    return random.Random(f"{seed}/{purpose}/{index}")  # a text seed is hashed by SHA-512
