"""What the page about overlapping people says first."""

import pytest

from kappaface_dist.evaluation.reports.overlap import overlap_sentence


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize(("people", "matches", "doubted"), [(28, 8, True), (550, 8, False)])
def test_claims_of_a_small_set_are_doubted(people, matches, doubted, alone):
    counts = {"first_people": people, "second_people": 10, "matches": matches}
    counts |= {"first_overlapping": 7, "second_overlapping": 8}
    sentence = overlap_sentence(counts, alone)
    assert ("too few to know how near strangers come" in sentence) is doubted
    assert sentence.startswith("7 of 28" if alone and doubted else "7 of 550" if alone else "8 of")


def test_nobody_is_no_claim():
    counts = {"first_people": 28, "second_people": 10, "matches": 0}
    assert overlap_sentence(counts, False).endswith("is found in the training set")
