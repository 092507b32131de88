"""How long a run is."""

from kappaface_dist.training.run_length import RunLength


def test_in_passes_over_the_data():
    length = RunLength(steps=None, epochs=3, num_images=10, global_batch=4)
    assert (length.images_to_read(0, 0), length.steps_left(0, 0)) == (30, 8)
    assert length.steps_left(5, 20) == 3


def test_in_steps():
    length = RunLength(steps=7, epochs=3, num_images=10, global_batch=4)
    assert length.steps_left(0, 0) == 7
    # After a change of the number of ranks position is no longer step x G; the steps still count.
    assert (length.steps_left(3, 24), length.images_to_read(3, 24)) == (4, 40)
