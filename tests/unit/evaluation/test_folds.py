"""Folds that hold both kinds of pairs, whatever the order in which the pairs lie."""

import numpy as np
import pytest
from sklearn.model_selection import KFold, StratifiedKFold

from kappaface_dist.evaluation.folds import (
    fold_numbers,
    folds_of_one_kind,
    order_for_folds,
    spread_evenly,
)

ONE_FOLD = np.arange(1000) < 500  # LFW's View 1: all same pairs, then all different ones
THREE_FOLDS = np.tile(np.arange(200) < 100, 3)
DIFFERENT_FIRST = ~ONE_FOLD
UNEQUAL = np.arange(733) < 45
IN_TURNS = np.tile([True, False], 60)


def kinds_of_folds(same_P):
    """The kinds in each of scikit-learn's folds."""
    return [set(same_P[test].tolist()) for _, test in KFold(n_splits=10).split(same_P)]


@pytest.mark.parametrize("num_pairs", [10, 57, 6000])
def test_the_folds_are_scikit_learns(num_pairs):
    fold_P = fold_numbers(num_pairs)
    for fold, (_, test) in enumerate(KFold(n_splits=10).split(fold_P)):
        assert np.flatnonzero(fold_P == fold).tolist() == test.tolist()


@pytest.mark.parametrize("same_P", [ONE_FOLD, THREE_FOLDS, DIFFERENT_FIRST, UNEQUAL])
def test_blocks_are_spread_and_it_is_said(same_P):
    order_P, note = order_for_folds(same_P)
    alone = sum(len(kinds) == 1 for kinds in kinds_of_folds(same_P))
    assert alone == folds_of_one_kind(same_P) > 0
    assert f"{alone} of 10 folds hold one kind only" in note
    assert sorted(order_P.tolist()) == list(range(len(same_P)))
    assert kinds_of_folds(same_P[order_P]) == [{True, False}] * 10
    # Each kind keeps its own order.
    assert (np.diff(order_P[same_P[order_P]]) > 0).all()
    assert (np.diff(order_P[~same_P[order_P]]) > 0).all()


def test_one_fold_lists_get_stratified_folds():
    # Independently: scikit-learn's stratified folds are blocks of each kind.
    order_P, _ = order_for_folds(ONE_FOLD)
    expected = [set(test) for _, test in StratifiedKFold(10).split(ONE_FOLD, ONE_FOLD)]
    found = [set(part.tolist()) for part in np.split(order_P, 10)]
    assert found == expected


def test_good_orders_stay():
    assert order_for_folds(IN_TURNS)[0].tolist() == list(range(120))
    field = np.tile(np.arange(600) < 300, 10)  # LFW's View 2
    assert order_for_folds(field) == (pytest.approx(np.arange(6000)), "")


def test_few_pairs_of_a_kind_have_no_order():
    order_P, note = order_for_folds(np.arange(500) < 9)
    assert order_P is None
    assert note.startswith("9 same and 491 different pairs are not enough")


@pytest.mark.parametrize("rarer", [10, 11, 12, 19, 40])
def test_ten_of_a_kind_fill_ten_folds(rarer):
    # Numbers at which rounding could leave a fold without the rarer kind.
    for other in range(rarer, rarer + 60):
        for few in (True, False):
            same_P = np.repeat([few, not few], [rarer, other])
            order_P = spread_evenly(same_P)
            assert sorted(order_P.tolist()) == list(range(len(same_P)))
            assert folds_of_one_kind(same_P[order_P]) == 0
