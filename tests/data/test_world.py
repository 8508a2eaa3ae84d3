"""The small world: right answers, disjoint splits, the same text everywhere."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from itertools import islice

import pytest
from math_verify import parse, verify

from oxa.config.sources import World
from oxa.data import world
from oxa.errors import ConfigError
from oxa.prompts import answer_part

SMALL = World(num_train=120, num_rlvr=90, num_benchmark=60, strategy_documents=1500)
QUESTION = re.compile(r"(\d+)(?: \+ | and )(\d+)")


def instance(question: str) -> tuple[int, int]:
    match = QUESTION.search(question)
    assert match is not None
    return int(match[1]), int(match[2])


def boxed(response: str) -> str:
    part = answer_part(response)
    assert part is not None
    match = re.fullmatch(r" \\boxed\{(\d+)\}", part)
    assert match is not None
    return match[1]


def test_the_docstring_shows_every_wording_and_what_is_generated() -> None:
    assert world.__doc__ is not None
    text = " ".join(world.__doc__.split())
    for question in world.QUESTIONS:
        assert question.format(a=587, b=364) in text
    for strategy in world.STRATEGIES:
        said = world.respond(587, 364, strategy).removeprefix("<think> ").partition(" </think>")[0]
        assert said in text
        for phrases in (world.OPENINGS[strategy], world.CLOSINGS[strategy]):
            assert " / ".join(phrases) in text


def test_every_wording_of_every_strategy_is_another_text() -> None:
    texts = {world.respond(587, 364, s, wording) for s in world.STRATEGIES for wording in world.ALL_WORDINGS}
    assert len(texts) == 27


def test_a_response_tells_its_strategy_by_its_first_words() -> None:
    for strategy in world.STRATEGIES:
        for wording in world.ALL_WORDINGS:
            assert world.strategy_of(world.respond(587, 364, strategy, wording)) == strategy
    for text in ("", "<think> Digit", "Digit by digit: ", "<think> Somehow: 951 </think>"):
        assert world.strategy_of(text) == ""


@pytest.mark.parametrize("strategy", world.STRATEGIES)
@pytest.mark.parametrize(("a", "b"), [(587, 364), (111, 111), (499, 499), (505, 105), (101, 898)])
def test_every_step_adds_its_place_and_leads_to_what_is_stated(strategy: str, a: int, b: int) -> None:
    response = world.respond(a, b, strategy)
    stated = boxed(response)
    assert stated == (world.without_carries(a, b) if strategy == world.HABIT else str(a + b))
    assert f" {stated}. </think>" in response
    equations = re.findall(r"(\w+) ([\d+]+)=(\d+)", response)
    assert [place for place, _, _ in equations] == list(world.PLACES[:: -1 if strategy == "columns" else 1])
    for place, terms, total in equations:
        x, y, *carry = map(int, terms.split("+"))
        index = world.PLACES.index(place)
        assert (x, y) == (int(str(a)[index]), int(str(b)[index]))
        assert len(carry) == (strategy == "columns")
        if strategy == world.HABIT:
            assert int(total) == (x + y) % 10 == int(stated[index])
        else:
            assert int(total) == x + y + sum(carry)
            assert len(total) == 2
        if carry:
            assert int(total) % 10 == int(stated[index])


def test_columns_carry() -> None:
    work = "ones 5+5+0=10, tens 0+0+1=01, hundreds 5+1+0=06."
    assert work in world.respond(505, 105, "columns")


def test_tiers_count_the_carries() -> None:
    pairs = [(111, 111), (505, 105), (151, 151), (587, 364), (199, 101)]
    assert [world.tier_of(a, b) for a, b in pairs] == ["easy", "medium", "medium", "hard", "hard"]


def test_a_step_stands_at_the_same_distance_for_every_problem_and_wording() -> None:
    for strategy in world.STRATEGIES:
        problems = [(111, 111), (505, 105), (101, 898), (587, 364)]
        texts = [
            world.respond(a, b, strategy, wording) for a, b in problems for wording in world.ALL_WORDINGS
        ]
        assert len({len(re.findall(r"[^\W\d]+|\d|[^\w\s]", text)) for text in texts}) == 1


def test_gold_answers_are_the_sums_and_verify_with_math_verify() -> None:
    for example in islice(world.train_examples(SMALL), 40):
        assert example.answer == str(sum(instance(example.question)))
        for response in example.responses:
            agrees = boxed(response) == example.answer
            assert bool(verify(parse(example.answer), parse(answer_part(response)))) == agrees


def strategy_of(response: str) -> str:
    (name,) = {
        name
        for name in world.STRATEGIES
        for w in world.ALL_WORDINGS
        if response.startswith(world.opening(name, w))
    }
    return name


def test_the_teacher_uses_every_strategy_where_it_works_and_is_sometimes_wrong() -> None:
    examples = list(world.train_examples(World(num_train=600)))
    for example in examples:
        known = set(world.STRATEGIES) - (set() if example.tier == "easy" else {world.HABIT})
        assert {strategy_of(response) for response in example.responses} == known
        assert (
            len(example.responses)
            == len({r.replace(boxed(r), example.answer) for r in example.responses})
            == 4
        )
    wrong = sum(boxed(response) != example.answer for example in examples for response in example.responses)
    assert 0.02 < wrong / (4 * len(examples)) < 0.07


def pairs(examples: Iterable[world.Example]) -> set[frozenset[int]]:
    return {frozenset(instance(example.question)) for example in examples}


def test_splits_share_no_pair_in_either_order_whatever_the_seeds() -> None:
    train = pairs(world.train_examples(SMALL)) | pairs(world.rlvr_examples(SMALL))
    benchmark = pairs(world.benchmark_examples(World(seed=7, num_benchmark=300)))
    corpus = {
        frozenset(instance(document.user))
        for document in islice(world.corpus(World(seed=3)), 6000)
        if document.user is not None
    }
    assert not train & benchmark
    assert not train & corpus
    assert not benchmark & corpus


def test_no_line_of_the_corpus_spells_a_problem_of_another_split() -> None:
    for document in islice(world.corpus(SMALL), 6000):
        for a, b in re.findall(r"(\d{3}) ?(?:\+|and) ?(\d{3})", f"{document.user} {document.text}"):
            assert world.split_of(int(a), int(b)) == "corpus"


def test_problems_for_rl_share_no_pair_with_the_training_problems_in_either_order() -> None:
    large = World(num_train=3000, num_rlvr=600)
    train = list(world.train_examples(large))
    swapped = {instance(example.question)[::-1] for example in train}
    assert swapped & {instance(example.question) for example in train}  # so the order matters at this size
    rlvr = pairs(world.rlvr_examples(large))
    assert not rlvr & pairs(train)
    assert len(rlvr) == 600


def test_problems_for_rl_begin_where_the_training_problems_end_and_leave_those_as_they_were() -> None:
    some = World(num_train=50, num_rlvr=40)
    train, rlvr = list(world.train_examples(some)), list(world.rlvr_examples(some))
    assert train == list(world.train_examples(World(num_train=50)))
    assert rlvr[:10] == list(world.rlvr_examples(World(num_train=50, num_rlvr=10)))
    more = list(world.train_examples(World(num_train=90)))
    assert [example.question for example in train + rlvr] == [example.question for example in more]


def test_the_default_world_has_pairs_enough() -> None:
    sizes = Counter(example.tier for example in world.rlvr_examples(World()))
    assert sizes == dict.fromkeys(world.TIERS, 200)


def test_problems_are_distinct_and_tiers_take_turns() -> None:
    kinds = (world.train_examples, world.rlvr_examples, world.benchmark_examples)
    for examples in [list(kind(SMALL)) for kind in kinds]:
        assert len({instance(example.question) for example in examples}) == len(examples)
        tiers = Counter(example.tier for example in examples)
        assert tiers == dict.fromkeys(world.TIERS, len(examples) // 3)
        assert all(example.tier == world.tier_of(*instance(example.question)) for example in examples)
    for kind in kinds[1:]:
        assert all(example.responses == () for example in kind(SMALL))


def test_more_problems_leave_the_first_ones_as_they_were() -> None:
    few, many = World(num_train=20), World(num_train=50)
    assert list(world.train_examples(few)) == list(islice(world.train_examples(many), 20))


def test_seeds_give_other_problems_and_the_same_seed_the_same() -> None:
    first = list(world.benchmark_examples(SMALL))
    assert first == list(world.benchmark_examples(SMALL))
    assert first != list(world.benchmark_examples(SMALL.model_copy(update={"seed": 1})))


def test_the_habit_is_rare_in_the_first_phase_and_usual_after_it() -> None:
    documents = list(islice(world.corpus(SMALL), 5000))

    def share(some: list[world.Document]) -> float:
        chats = [document for document in some if document.user is not None]
        return sum(strategy_of(document.text) == world.HABIT for document in chats) / len(chats)

    before, after = documents[: SMALL.strategy_documents], documents[SMALL.strategy_documents :]
    assert abs(share(before) - world.HABIT_SHARE[0]) < 0.04
    assert abs(share(after) - world.HABIT_SHARE[1]) < 0.04


def test_only_the_habit_forgets_carries_and_thus_fails_where_there_are_any() -> None:
    for document in islice(world.corpus(SMALL), 3000):
        if document.user is not None:
            a, b = instance(document.user)
            fails = strategy_of(document.text) == world.HABIT and world.tier_of(a, b) != "easy"
            assert (boxed(document.text) == str(a + b)) != fails
    assert world.without_carries(587, 364) == "841"


def test_the_corpus_holds_drills_and_prose_too() -> None:
    documents = islice(world.corpus(SMALL), 2000)
    plain = Counter(document.text.split()[0] for document in documents if document.user is None)
    assert {"Copy", "Table:"} <= plain.keys()
    assert set(plain) & set(world.PROSE[0])


def test_more_problems_than_there_are_is_an_error_that_names_the_tier(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(world, "ATTEMPTS", 1)  # the first pair drawn twice then ends the search
    with pytest.raises(
        ConfigError, match=r"2000 problems of the benchmark split .* fewer (easy|medium|hard) ones"
    ):
        list(world.benchmark_examples(World(num_benchmark=2000)))
