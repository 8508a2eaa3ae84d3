"""The objective against plain arithmetic, finite differences and its own parts."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oxa.training import losses

LOG_PROBS = st.floats(min_value=-60, max_value=losses.MAX_LOG_PROB - 1e-9)


def leaf(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


@given(LOG_PROBS)
def test_unlikelihood_is_minus_the_log_of_the_rest(log_prob: float) -> None:
    with localcontext(prec=60):
        exact = float(-(1 - Decimal(log_prob).exp()).ln())
    assert losses.unlikelihood(leaf(log_prob)).item() == pytest.approx(exact, rel=1e-13, abs=1e-26)


@given(LOG_PROBS)
def test_its_gradient_is_the_odds(log_prob: float) -> None:
    point = leaf(log_prob)
    losses.unlikelihood(point).backward()
    assert point.grad is not None
    odds = math.exp(log_prob) / -math.expm1(log_prob)
    assert point.grad.item() == pytest.approx(odds, rel=1e-9)


def test_autograd_agrees_with_finite_differences() -> None:
    points = torch.tensor([-20.0, -3.0, -0.7, -0.69, -0.1, -1e-3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(losses.unlikelihood, (points,), eps=1e-8, atol=1e-4)
    assert torch.autograd.gradcheck(losses.cross_entropy, (points,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extremes_are_finite_with_their_gradients(dtype: torch.dtype) -> None:
    points = torch.tensor(
        [-math.inf, -1e4, -104.0, -math.log(2), -1e-6, -1e-9, -0.0, 0.0], dtype=dtype, requires_grad=True
    )
    values = losses.unlikelihood(points)
    values.sum().backward()
    assert points.grad is not None
    assert torch.isfinite(values).all()
    assert torch.isfinite(points.grad).all()
    assert (values >= 0).all()
    assert values[0] == 0
    assert values[-1].item() == pytest.approx(-math.log(1e-6), rel=0.05)


def test_float32_keeps_its_digits_on_both_branches() -> None:
    points = torch.tensor([-15.0, -0.694, -0.692, -1e-3, -2e-6], dtype=torch.float64)
    exact = losses.unlikelihood(points)
    torch.testing.assert_close(losses.unlikelihood(points.float()).double(), exact, rtol=1e-6, atol=0)


@given(st.lists(st.floats(-60, 0), min_size=1, max_size=9))
def test_dynamic_fine_tuning_weighs_by_the_probability_and_has_it_for_a_gradient(drawn: list[float]) -> None:
    points = torch.tensor(drawn, dtype=torch.float64, requires_grad=True)
    values = losses.dynamic(points)
    values.sum().backward()
    assert values.tolist() == pytest.approx([-math.exp(x) * x for x in drawn])
    assert points.grad is not None
    assert points.grad.tolist() == pytest.approx([-math.exp(x) for x in drawn]), (
        "that of the probability, negative"
    )


def logits_of(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """[50, 40] float64 of all sizes, and a token of each."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-2, 1, 50, dtype=torch.float64)[:, None]
    logits = scale * torch.randn(50, 40, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), torch.randint(40, (50, 1), generator=generator)


def test_entropy_adaptive_fine_tuning_weighs_by_the_normalised_entropy_of_the_top_20() -> None:
    logits, tokens = logits_of()
    weights = losses.normalised_entropies(logits.detach().topk(20).values)
    for row, weight in zip(logits.tolist(), weights.tolist(), strict=True):
        best = sorted(row)[-20:]
        p = [math.exp(x - best[-1]) for x in best]
        p = [x / math.fsum(p) for x in p]
        assert weight == pytest.approx(
            -math.fsum(x * math.log(x) for x in p if x) / math.log(20), rel=1e-5, abs=1e-6
        )
    assert 0 <= weights.min() < 0.05
    assert 0.95 < weights.max() <= 1
    log_probs = logits.log_softmax(1).gather(1, tokens)[:, 0]
    losses.entropy_adaptive(log_probs, weights).sum().backward()
    plain = torch.nn.functional.one_hot(tokens[:, 0], 40) - logits.detach().softmax(1)
    torch.testing.assert_close(logits.grad, -weights[:, None] * plain)


@given(st.lists(st.tuples(st.floats(-30, -1e-3), st.floats(-30, -1e-3)), min_size=1, max_size=9))
def test_proximal_fine_tuning_pushes_a_token_no_further_than_its_bound(
    drawn: list[tuple[float, float]],
) -> None:
    now = torch.tensor([new for new, _ in drawn], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([before for _, before in drawn], dtype=torch.float64)
    values = losses.proximal(now, old)
    values.sum().backward()
    assert now.grad is not None
    for value, slope, (new, before) in zip(values.tolist(), now.grad.tolist(), drawn, strict=True):
        ratio = math.exp(new - before)
        assert value == pytest.approx(-min(ratio, min(max(ratio, 0.8), 1.28)))
        assert slope == (pytest.approx(-ratio) if ratio < 1.28 else 0)
    (first,) = torch.autograd.grad(losses.proximal(now, now.detach()).sum(), now)
    assert (first == -1).all(), "cross-entropy's, where nothing has moved"


def test_gems_gradient_is_that_of_the_published_sum_over_the_vocabulary() -> None:
    logits, tokens = logits_of()
    tempered = (logits / 0.7).log_softmax(1).gather(1, tokens)[:, 0]
    (gradient,) = torch.autograd.grad(losses.entropic_matching(logits.sum(1), tempered).sum(), logits)
    log_p = logits.log_softmax(1)
    q = (logits / 0.7).softmax(1).detach()
    published = (q * (log_p - log_p.gather(1, tokens))).sum()
    torch.testing.assert_close(gradient, torch.autograd.grad(published, logits)[0])


@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.5, 2.0]), st.booleans()), min_size=5, max_size=5),
        min_size=1,
    ),
    st.integers(1, 6),
)
def test_the_surest_tokens_are_the_scored_ones_of_lowest_entropy_first_ones_first(
    drawn: list[list[tuple[float, bool]]], count: int
) -> None:
    entropy = torch.tensor([[value for value, _ in row] for row in drawn])
    scored = torch.tensor([[is_scored for _, is_scored in row] for row in drawn])
    for row, kept in zip(drawn, losses.surest(entropy, scored, count), strict=True):
        wanted = sorted((value, place) for place, (value, is_scored) in enumerate(row) if is_scored)[:count]
        assert kept.nonzero()[:, 0].tolist() == sorted(place for _, place in wanted)


def plain(rows: list[list[float]], suppressed: list[bool], weight: float, normalization: str) -> float:
    """L written out as in METHOD §4, over rows of response log-probabilities."""
    terms = []
    for wanted, scale in ((False, 1.0), (True, weight)):
        mine = [row for row, is_ul in zip(rows, suppressed, strict=True) if is_ul == wanted]
        if not mine:
            continue
        cost = [[-math.log1p(-math.exp(x)) if wanted else -x for x in row] for row in mine]
        if normalization == "sequence":
            terms.append(scale * sum(sum(row) / len(row) for row in cost) / len(mine))
        else:
            terms.append(scale * sum(map(sum, cost)) / sum(map(len, cost)))
    return sum(terms)


def padded(rows: list[list[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, T] log-probabilities, 0 beyond a row's end, and which of them count."""
    width = max(map(len, rows))
    values = torch.tensor([row + [0.0] * (width - len(row)) for row in rows], dtype=torch.float64)
    scored = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    return values, scored


def totals_of(rows: list[list[float]], suppressed: list[bool]) -> losses.Totals:
    num_ul = sum(suppressed)
    ul_tokens = sum(len(row) for row, is_ul in zip(rows, suppressed, strict=True) if is_ul)
    return losses.Totals(len(rows) - num_ul, num_ul, sum(map(len, rows)) - ul_tokens, ul_tokens)


ROWS = st.lists(
    st.tuples(st.lists(st.floats(-12, -1e-3), min_size=1, max_size=6), st.booleans()), min_size=1, max_size=8
)


@settings(deadline=None)
@given(ROWS, st.sampled_from(["sequence", "token"]), st.floats(0, 2), st.randoms(use_true_random=False))
def test_mixed_batches_equal_the_sum_of_their_parts(  # METHOD §6.1
    drawn: list[tuple[list[float], bool]], normalization: str, weight: float, random: object
) -> None:
    rows, suppressed = [row for row, _ in drawn], [is_ul for _, is_ul in drawn]
    totals = totals_of(rows, suppressed)

    def share(indices: list[int]) -> tuple[float, torch.Tensor]:
        values, scored = padded([rows[i] for i in indices])
        values.requires_grad_()
        part = losses.mix(
            values,
            scored,
            torch.tensor([suppressed[i] for i in indices]),
            totals,
            ul_weight=weight,
            normalization=normalization,  # type: ignore[arg-type]
        )
        part.loss.backward()
        assert values.grad is not None
        assert (values.grad[~scored] == 0).all()
        gradients = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.float64)
        gradients[indices, : values.shape[1]] = values.grad
        return part.loss.item(), gradients

    whole, gradient = share(list(range(len(rows))))
    assert whole == pytest.approx(plain(rows, suppressed, weight, normalization), rel=1e-9, abs=1e-12)
    cut = random.randrange(len(rows) + 1)  # type: ignore[attr-defined]
    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    parts = [share(part) for part in (order[:cut], order[cut:]) if part]
    assert sum(loss for loss, _ in parts) == pytest.approx(whole, rel=1e-12, abs=1e-12)
    torch.testing.assert_close(sum(g for _, g in parts), gradient, rtol=1e-12, atol=0)


def test_ce_rows_of_a_micro_batch_with_a_ul_row_keep_their_loss() -> None:
    values, scored = padded([[-1.0, -3.0], [-0.5, -0.5]])
    kwargs = {"ul_weight": 0.0, "normalization": "sequence"}
    mixed = losses.mix(
        values,
        scored,
        torch.tensor([False, True]),
        losses.Totals(1, 1, 2, 2),
        **kwargs,  # type: ignore[arg-type]
    )
    assert mixed.loss.item() == 2.0
    assert mixed.ce_loss.item() == 2.0
    assert mixed.ul_loss.item() == pytest.approx(-math.log(1 - math.exp(-0.5)))


def test_the_ce_loss_is_a_choice_of_the_ce_rows_alone() -> None:
    values, scored = padded([[-1.0, -3.0], [-0.5, -0.5]])
    found = losses.mix(
        values,
        scored,
        torch.tensor([False, True]),
        losses.Totals(1, 1, 2, 2),
        ul_weight=1.0,
        normalization="sequence",
        ce_loss="dft",
    )
    assert found.ce_loss.item() == 2.0, "what is told is cross-entropy, so that arms can be compared"
    dynamic = (math.exp(-1) + 3 * math.exp(-3)) / 2
    assert found.loss.item() == pytest.approx(dynamic - math.log(1 - math.exp(-0.5)))
    assert found.ul_loss.item() == pytest.approx(-math.log(1 - math.exp(-0.5)))


def test_sequence_normalization_ignores_length_and_token_normalization_does_not() -> None:
    values, scored = padded([[-4.0], [-1.0] * 9])
    neither = torch.tensor([False, False])
    totals = losses.Totals(2, 0, 10, 0)
    by_sequence = losses.mix(values, scored, neither, totals, ul_weight=1, normalization="sequence")
    by_token = losses.mix(values, scored, neither, totals, ul_weight=1, normalization="token")
    assert by_sequence.loss.item() == 2.5
    assert by_token.loss.item() == pytest.approx(1.3)
    assert by_sequence.ul_loss.item() == 0
