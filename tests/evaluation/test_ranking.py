"""The order in which pages show pictures."""

from ddib_fed.evaluation.folder import worst_first


def row(cycle, edges, **more):
    return {"cycle_psnr": cycle, "edge_correlation": edges, **more}


def test_a_picture_that_lost_its_structure_comes_before_a_mediocre_round_trip():
    """By the round trip alone, the best returned of these four would be last."""
    rows = [row(38.0, 0.5), row(39.0, 0.6), row(44.0, 0.02), row(33.0, 0.7)]
    assert worst_first(rows)[:2] == [2, 3]


def test_doubtful_pictures_come_first():
    rows = [row(30.0, 0.1), row(40.0, 0.5, doubtful=True), row(41.0, 0.6, doubtful=False)]
    assert worst_first(rows) == [1, 0, 2]


def test_a_figure_that_some_pictures_lack_does_not_count():
    rows = [row(40.0, None), row(39.0, 0.1), row(38.0, 0.9)]
    assert worst_first(rows) == [2, 1, 0]


def test_a_figure_that_is_no_number_is_the_worst():
    """A round trip through a model that diverged; sorted as a number it would be the best."""
    assert worst_first([row(40.0, 0.4), row(float("nan"), 0.5), row(38.0, 0.6)])[0] == 1


def test_without_figures_the_order_stays():
    assert worst_first([{}, {}, {}]) == [0, 1, 2]
    assert worst_first([]) == []
