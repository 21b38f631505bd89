"""Tickets from scores: exact counts, survivors that stay pruned, matched layers, and draws of every kind."""

import math
from dataclasses import replace

import pytest
import torch

from lthlib.errors import InputError
from lthlib.finders.from_scores import SCOPES, Sampling, exponential_counts, prune_by, pruned, select, wanted_counts
from lthlib.finders.scores import magnitude_scores, random_scores
from lthlib.masks.counts import counts_of
from lthlib.masks.draws import DRAWS
from lthlib.masks.topk import keep_top
from lthlib.models.architecture import architecture, output_layer
from lthlib.models.initial import initial_state
from lthlib.randomness import generator
from lthlib.ticket import Ticket, dense_ticket


def dense(name: str = "lenet-20-10") -> Ticket:
    model = architecture(name, (1, 8, 8), 10)
    return dense_ticket(model, initial_state(model, 0))


def skewed(ticket: Ticket) -> dict[str, torch.Tensor]:
    """Scores that favour the first layer, so that global and per-layer counts differ."""
    scale = {name: 0.5**number for number, name in enumerate(ticket.masks)}
    return {name: score * scale[name] for name, score in magnitude_scores(ticket).items()}


def test_exponential_counts_fall_by_one_factor_and_end_exactly():
    assert exponential_counts(1000, 10, 4) == [316, 100, 32, 10]
    assert exponential_counts(1000, 10.4, 1) == [10] and exponential_counts(7, 7, 2) == [7, 7]
    assert exponential_counts(0, 0, 2) == [0, 0] and exponential_counts(50, 0, 2) == [0, 0]
    with pytest.raises(InputError, match="iterations 0 is not 1 or more"):
        exponential_counts(10, 1, 0)


@pytest.mark.parametrize("draw", ["topk", "gumbel"])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("keep_one", [False, True])
def test_counts_are_exact_in_every_scope(draw, scope, keep_one):
    ticket = dense("conv-2-w2")
    for density in (0.3, 0.01):
        sampling = Sampling(draw, scope=scope, keep_one=keep_one)
        found = pruned("skewed", skewed, ticket, density, sampling, iterations=3)
        assert found.kept == round(density * ticket.prunable)
        if keep_one:
            assert min(counts_of(found.masks).values()) >= 1
        again = pruned("skewed", skewed, ticket, density, sampling, iterations=3)
        assert all(torch.equal(again.masks[name], mask) for name, mask in found.masks.items())


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("at", ["each", "end"])
@pytest.mark.parametrize("reweight", [False, True])
def test_what_is_pruned_never_returns(draw, at, reweight):
    ticket = dense()
    sampling = Sampling(draw, at=at, reweight=reweight)
    previous, total = ticket, ticket.prunable
    counts = exponential_counts(total, 0.05 * total, 8)
    for count, step in zip(counts, prune_by(skewed, ticket, counts, sampling, generator(0, "x")), strict=True):
        assert all(not (mask & ~previous.masks[name]).any() for name, mask in step.masks.items())
        assert step.kept == count if draw in ("topk", "gumbel") else abs(step.kept - count) < 6 * math.sqrt(count) + 6
        previous = step
    if not reweight or draw == "topk":
        assert all(torch.equal(previous.coefficients[name], c) for name, c in ticket.coefficients.items())
    else:
        grown = [(previous.coefficients[n] / c)[previous.masks[n]] for n, c in ticket.coefficients.items()]
        # One over a probability, but for draws with replacement: those are counted.
        assert draw == "multinomial" or float(torch.cat(grown).min()) > 1 - 1e-5
        assert float(torch.cat(grown).max()) > 1.5


def test_revived_coefficients_come_back_only_when_declared():
    ticket = dense()
    first, second = (random_scores(ticket, generator(seed, "s")) for seed in (0, 1))
    half = ticket.prunable // 2

    def run(revive: bool) -> list[Ticket]:
        given = iter([first, second])
        return list(prune_by(lambda _: next(given), ticket, [half, half // 2], revive=revive))

    again, once = run(revive=True), run(revive=False)
    best = keep_top(second, half // 2)
    assert all(torch.equal(again[1].masks[name], mask) for name, mask in best.items())
    assert all(not (mask & ~once[0].masks[name]).any() for name, mask in once[1].masks.items())
    assert any((mask & ~again[0].masks[name]).any() for name, mask in again[1].masks.items())


@pytest.mark.parametrize("iterations", [1, 5])
def test_matched_draws_have_the_counts_of_top_k_and_other_weights(iterations):
    ticket = dense()
    top = pruned("skewed", skewed, ticket, 0.1, iterations=iterations)
    matched = pruned("skewed", skewed, ticket, 0.1, Sampling("gumbel", scope="matched"), iterations)
    free = pruned("skewed", skewed, ticket, 0.1, Sampling("gumbel"), iterations)
    assert counts_of(matched.masks) == counts_of(top.masks) != counts_of(free.masks)
    assert any(not torch.equal(matched.masks[name], mask) for name, mask in top.masks.items())
    sharp = pruned("skewed", skewed, ticket, 0.1, Sampling("gumbel", temperature=math.inf), iterations)
    assert all(torch.equal(sharp.masks[name], mask) for name, mask in top.masks.items())


def test_ties_and_zeros_meet_the_count_exactly():
    ticket = dense()
    zeros = {name: torch.zeros_like(c) for name, c in ticket.coefficients.items()}
    few = {name: zero.clone() for name, zero in zeros.items()}
    first = next(iter(few))
    few[first].view(-1)[:30] = 1
    for scores in (zeros, few):
        assert select(ticket, scores, 100).kept == 100
    drawn = [select(ticket, few, 100, Sampling("gumbel"), generator(seed, "z")) for seed in (0, 1)]
    for found in drawn:
        assert found.kept == 100 and bool(found.masks[first].view(-1)[:30].all())
    assert not torch.equal(drawn[0].masks[first], drawn[1].masks[first])
    counts = {name: 5 for name in few}
    layerwise = select(ticket, few, counts, Sampling("gumbel"), generator(0, "z"))
    assert counts_of(layerwise.masks) == counts


@pytest.mark.parametrize("signed", ["clamp", "softmax", "shift", "abs"])
def test_signed_scores_keep_their_order_in_a_draw(signed):
    ticket = dense()
    scores = {name: c.clone() for name, c in ticket.coefficients.items()}
    top = select(ticket, scores, ticket.prunable // 10)
    drawn = select(ticket, scores, ticket.prunable // 10, Sampling("gumbel", signed=signed), generator(0, "g"))
    assert drawn.kept == top.kept

    def mean(found: Ticket) -> float:
        kept = torch.cat([scores[name][mask] for name, mask in found.masks.items()])
        return float(kept.abs().mean() if signed == "abs" else kept.mean())

    uniform = select(ticket, scores, ticket.prunable // 10, Sampling("gumbel", temperature=0), generator(0, "g"))
    assert mean(uniform) < mean(drawn)
    assert min(float(scores[n][m].min()) for n, m in top.masks.items()) > 0


def test_inversion_keeps_the_lowest():
    ticket = dense()
    scores = magnitude_scores(ticket)
    top, low = select(ticket, scores, 50), select(ticket, scores, ticket.prunable - 50, Sampling(invert=True))
    assert all(torch.equal(low.masks[name], ~mask) for name, mask in top.masks.items())
    survivors = select(low, scores, 10, Sampling(invert=True))
    assert all(not (mask & ~low.masks[name]).any() for name, mask in survivors.masks.items())


def test_a_kept_output_layer_stays_whole_and_counts():
    ticket = dense()
    head = output_layer(ticket.architecture)
    for sampling in (Sampling(output_layer="kept"), Sampling("gumbel", scope="matched", output_layer="kept")):
        found = pruned("skewed", skewed, ticket, 0.2, sampling, iterations=2)
        assert found.kept == round(0.2 * ticket.prunable) and bool(found.masks[head].all())
    with pytest.raises(InputError, match=f"less than the 100 weights of the kept output layer '{head}'"):
        pruned("skewed", skewed, ticket, 0.01, Sampling(output_layer="kept"))


def test_bad_input_is_named():
    ticket = dense()
    for options, message in (
        ({"draw": "best"}, "unknown draw 'best'"),
        ({"scope": "layer"}, "unknown scope 'layer'"),
        ({"at": "start"}, "unknown at 'start'"),
        ({"signed": "square"}, "unknown signed 'square'"),
        ({"output_layer": "half"}, "unknown output_layer 'half'"),
        ({"reweight": True, "keep_one": True}, "exclude each other"),
        ({"scope": "smart-ratio", "output_layer": "kept"}, "its own rule"),
    ):
        with pytest.raises(InputError, match=message):
            Sampling(**options)
    with pytest.raises(InputError, match="needs a generator"):
        select(ticket, magnitude_scores(ticket), 10, Sampling("gumbel"))
    with pytest.raises(InputError, match="density 0 is not in"):
        wanted_counts(ticket, 0)
    thin = select(ticket, magnitude_scores(ticket), 100)
    with pytest.raises(InputError, match="where the ticket has 100"):
        wanted_counts(thin, 0.5)
    with pytest.raises(InputError, match="count 2 cannot keep one weight in each of 3 layers"):
        select(ticket, magnitude_scores(ticket), 2, Sampling(keep_one=True))
    nan = {name: c.clone() for name, c in ticket.coefficients.items()}
    nan["3.weight"][0, 0] = math.nan
    with pytest.raises(InputError, match=r"magnitude gave NaN scores in layer '3\.weight'"):
        pruned("magnitude", magnitude_scores, replace(ticket, coefficients=nan), 0.1)
