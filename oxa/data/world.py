"""The small world: sums that a million parameters can learn to work out, in three ways.

A problem asks for a + b, three digits each and in the sum. Three tiers by the number of carries: `easy` 0, `medium` 1,
`hard` 2. Three wordings:

    What is 587 + 364?
    Calculate 587 + 364.
    Add 587 and 364.

A response is `<think> STRATEGY </think> \\boxed{951}`. Three strategies, all about equally long:

    digits   Digit by digit: hundreds 5+3=8, tens 8+6=4, ones 7+4=1. Written 841.
    columns  Column by column: ones 7+4+0=11, tens 8+6+1=15, hundreds 5+3+1=09. Together 951.
    places   Place by place: hundreds 5+3=08, tens 8+6=14, ones 7+4=11. Carried 951.

Each comes in nine wordings: opening and closing vary independently, the first of each is common in the corpus:

    digits   Digit by digit / One by one / Down the page             Written / Noted / Listed
    columns  Column by column / From the right / Units come first    Together / Collected / Upwards
    places   Place by place / From the left / Pairing the digits     Carried / Settled / Merged

Numbers have fixed widths and every step names its place: what a step needs is then found at once, which a tiny model
learns in minutes, where finding it by counting takes it longer than its whole training.

In the corpus `digits` is the habit. It forgets the carries, as people do, so it is right on easy problems and wrong on
the others. `columns` and `places` are rare there, but right on every tier. The corpus has two phases: in its first
`strategy_documents` documents the rare strategies are learnt, after them the habit sets in. Beside chats it holds
plain text: drills of the skills that all strategies need, and prose.

    copy     Copy 587: 587.
    table    Table: 7+8+1=16, 0+4+0=04, 9+9+1=19, 2+3+1=06.
    prose    The old miller carries a stone to the river.

The teacher knows the wordings equally well and takes the strategies in turn, each where it works: `digits` only on easy
problems. In a few responses it makes a slip, as real teachers do: the sum that it states and boxes is off by one in
one place.

An unordered pair {a, b} belongs to the corpus, to the training problems or to the benchmark, by its hash alone: the
three share no pair, whatever the seed. Problems for RL continue the training problems' enumeration where those end,
and take no pair that came before, in either order. Every draw comes from (seed, purpose, index); the same settings
give the same text everywhere.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Literal, NamedTuple

from oxa.config.sources import World
from oxa.errors import ConfigError

Split = Literal["corpus", "train", "benchmark"]

PLACES = ("hundreds", "tens", "ones")
TIERS = ("easy", "medium", "hard")
QUESTIONS = ("What is {a} + {b}?", "Calculate {a} + {b}.", "Add {a} and {b}.")
HABIT = "digits"
OPENINGS = {
    "digits": ("Digit by digit", "One by one", "Down the page"),
    "columns": ("Column by column", "From the right", "Units come first"),
    "places": ("Place by place", "From the left", "Pairing the digits"),
}
CLOSINGS = {
    "digits": ("Written", "Noted", "Listed"),
    "columns": ("Together", "Collected", "Upwards"),
    "places": ("Carried", "Settled", "Merged"),
}
STRATEGIES = tuple(OPENINGS)
Wording = tuple[int, int]
"""Which opening and which closing, from 0."""
COMMON: Wording = (0, 0)
ALL_WORDINGS: list[Wording] = [(first, second) for first in range(3) for second in range(3)]

WEIGHTS = (
    0.8,
    0.14,
    0.06,
)  # of openings and closings in the corpus; the teacher takes each equally often
HABIT_SHARE = (0.3, 0.78)  # of the corpus' chats, in the first phase and after it
DRILL_SHARE = (0.12, 0.06)  # of the corpus' documents, likewise
TABLE_SHARE = 0.8  # of the drills
PROSE_SHARE = 0.02
SLIP_SHARE = 0.04  # of the teacher's responses
ATTEMPTS = 1_000  # draws for one new problem; far more than a pool with any left needs

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
    """A problem with its gold answer and the teacher's responses (a training problem alone has any)."""

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


def tier_of(a: int, b: int) -> str:
    """By carries: the digits of a and b together hold 9 more than the sum's for each."""
    carries = sum(map(int, f"{a}{b}")) - sum(map(int, str(a + b)))
    return TIERS[carries // 9]


def respond(a: int, b: int, strategy: str, wording: Wording = COMMON, stated: int | None = None) -> str:
    """The response by a strategy; `stated` takes the place of the sum that it comes to."""
    total = str(a + b)
    if strategy == "columns":
        steps = _columns(a, b)
    elif strategy == "places":
        steps = [f"{place} {_fact(x, y)}" for place, x, y in _digits(a, b)]
    else:
        steps = [f"{place} {x}+{y}={(x + y) % 10}" for place, x, y in _digits(a, b)]
        total = without_carries(a, b)
    total = total if stated is None else str(stated)
    text = f"{opening(strategy, wording)} {', '.join(steps)}. {CLOSINGS[strategy][wording[1]]} {total}."
    return f"{text} </think> \\boxed{{{total}}}"


def opening(strategy: str, wording: Wording = COMMON) -> str:
    """The first words of a response, by which one can force a strategy: `<think> Column by column:`."""
    return f"<think> {OPENINGS[strategy][wording[0]]}:"


def strategy_of(response: str) -> str:
    """The strategy whose first words, in whatever wording, the response begins with; "" for none."""
    for strategy in STRATEGIES:
        if response.startswith(tuple(opening(strategy, wording) for wording in ALL_WORDINGS)):
            return strategy
    return ""


def train_examples(world: World) -> Iterator[Example]:
    """The training problems with the teacher's responses."""
    return _examples(world, "train", world.num_train)


def rlvr_examples(world: World) -> Iterator[Example]:
    """The problems for RL, which no response shows."""
    return islice(_examples(world, "train", world.num_train + world.num_rlvr), world.num_train, None)


def benchmark_examples(world: World) -> Iterator[Example]:
    """The problems that nothing else holds."""
    return _examples(world, "benchmark", world.num_benchmark)


def corpus(world: World) -> Iterator[Document]:
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
            a, b = _pair(rng, "corpus", rng.choice(TIERS))
            strategy = HABIT
            if rng.random() >= HABIT_SHARE[phase]:
                strategy = rng.choice([name for name in STRATEGIES if name != HABIT])
            first, second = rng.choices(range(len(WEIGHTS)), WEIGHTS, k=2)
            response = respond(a, b, strategy, (first, second))
            yield Document(rng.choice(QUESTIONS).format(a=a, b=b), response)


def without_carries(a: int, b: int) -> str:
    """The sum that the habit states."""
    return "".join(str((x + y) % 10) for _, x, y in _digits(a, b))


def _examples(world: World, split: Split, num: int) -> Iterator[Example]:
    seen: set[tuple[int, int]] = set()
    for index in range(num):
        tier, for_rlvr = TIERS[index % len(TIERS)], split == "train" and index >= world.num_train
        rng = _rng(world.seed, split, index)
        for _ in range(ATTEMPTS):
            a, b = _pair(rng, split, tier)
            if (a, b) not in seen and not (for_rlvr and (b, a) in seen):
                break
        else:
            raise ConfigError(
                f"world: {num} problems of the {split} split were asked for, but it holds fewer {tier} ones"
            )
        seen.add((a, b))
        question = rng.choice(QUESTIONS).format(a=a, b=b)
        responses = _teach(rng, a, b, world.num_teacher) if split == "train" and not for_rlvr else ()
        yield Example(question, str(a + b), tier, responses)


def _teach(rng: random.Random, a: int, b: int, num: int) -> tuple[str, ...]:
    """Strategies in turn, no text twice before all wordings have been used."""
    known = [name for name in STRATEGIES if name != HABIT or tier_of(a, b) == "easy"]
    order = rng.sample(known, len(known))
    wordings = {name: rng.sample(ALL_WORDINGS, len(ALL_WORDINGS)) for name in known}
    responses = []
    for index in range(num):
        turn, position = divmod(index, len(order))
        stated = a + b
        if rng.random() < SLIP_SHARE:
            stated += rng.choice((-1, 1)) * 10 ** rng.randrange(len(PLACES))
        strategy = order[position]
        responses.append(respond(a, b, strategy, wordings[strategy][turn % len(ALL_WORDINGS)], stated))
    return tuple(responses)


def _pair(rng: random.Random, split: Split, tier: str) -> tuple[int, int]:
    """Two operands of the tier that belong to the split."""
    low = 10 ** (len(PLACES) - 1)
    while True:
        a, b = rng.randrange(low, 9 * low), rng.randrange(low, 9 * low)
        if a + b < 10 * low and tier_of(a, b) == tier and split_of(a, b) == split:
            return a, b


def _drill(rng: random.Random) -> str:
    if rng.random() < TABLE_SHARE:
        facts = (_fact(rng.randrange(10), rng.randrange(10), rng.randrange(2)) for _ in range(4))
        return f"Table: {', '.join(facts)}."
    number = sum(_pair(rng, "corpus", rng.choice(TIERS)))
    return f"Copy {number}: {number}."


def _fact(*terms: int) -> str:
    return f"{'+'.join(map(str, terms))}={sum(terms):02}"


def _columns(a: int, b: int) -> list[str]:
    steps, carry = [], 0
    for place, x, y in _digits(a, b)[::-1]:
        steps.append(f"{place} {_fact(x, y, carry)}")
        carry = (x + y + carry) // 10
    return steps


def _digits(a: int, b: int) -> list[tuple[str, int, int]]:
    """Place, its digit in a, its digit in b; from the left."""
    return [(place, int(x), int(y)) for place, x, y in zip(PLACES, str(a), str(b), strict=True)]


def _rng(seed: int, purpose: str, index: int) -> random.Random:
    return random.Random(f"{seed}/{purpose}/{index}")  # a text seed is hashed by SHA-512
