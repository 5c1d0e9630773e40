"""Values become numbers by one stated rule, and the way back that is stated is the way back."""

import numpy as np
import pytest

from ddib_fed.data.study import IntensityRule
from ddib_fed.errors import ImageUnreadable, UsageError

VALUES = np.random.default_rng(0).normal(300, 120, (5, 9, 8, 1))


@pytest.mark.parametrize(
    ("text", "dtype", "top"),
    [
        ("percentile:0.5,99.5", np.uint8, 255),
        ("percentile:1,99@0:4095", np.uint16, 4095),
        ("window:300,400@0:65535", np.uint16, 65535),
        ("window:300,400@-1:1", np.float32, 1),
    ],
)
def test_numbers_fill_the_range_and_the_stated_inverse_undoes_them(text, dtype, top):
    """Within half a step of the type, for values that are not clipped."""
    intensity = IntensityRule.parse(text).on(VALUES)
    numbers, rule = intensity.numbers(VALUES), intensity.rule
    assert numbers.dtype == dtype
    assert numbers.max() == top
    stated = intensity.record(VALUES)
    number = numbers.astype(np.float64)
    back = eval(stated["inverse"].partition("=")[2], {"number": number})
    inside = (intensity.black <= VALUES) & (intensity.white >= VALUES)
    step = (intensity.white - intensity.black) / (rule.high - rule.low) if dtype != np.float32 else 1e-3
    assert np.abs(back - VALUES)[inside].max() <= 0.52 * step  # float32 in between
    assert stated["clipped"] == pytest.approx(1 - inside.mean(), abs=1e-6)


@pytest.mark.parametrize(
    ("least", "most", "kind"),
    [(-32768, 32767, np.int16), (-1, 32768, np.float32), (0, 65535, np.uint16), (0, 0.5, np.float32)],
)
def test_values_that_are_sent_as_they_are_keep_their_numbers(least, most, kind):
    """In the smallest type that holds all of them, and in no smaller one."""
    values = np.array([[least, most], [0, least]], dtype=np.float64)[..., None]
    numbers = IntensityRule("values").on(values).numbers(values)
    assert numbers.dtype == kind
    np.testing.assert_array_equal(numbers, values)


@pytest.mark.parametrize(
    "text", ["bright", "window:40,0", "percentile:99,1", "hu@0:255", "window:40,400@9:9"]
)
def test_a_rule_that_is_none_is_refused(text):
    with pytest.raises(UsageError) as caught:
        IntensityRule.parse(text)
    assert "--intensity" in caught.value.hint


def test_values_that_say_nothing_are_refused():
    """Percentiles of a constant, and NaN that would be sent as it is."""
    with pytest.raises(ImageUnreadable, match="percentiles say nothing"):
        IntensityRule.parse("percentile:1,99").on(np.full((4, 4), 7))
    holed = VALUES.copy()
    holed[0, 0, 0] = np.nan
    with pytest.raises(ImageUnreadable, match="NaN"):
        IntensityRule("values").on(holed).numbers(holed)
    holed[0, 0, 1] = np.inf
    found = IntensityRule.parse("percentile:1,99").on(holed)
    assert (found.black, found.white) == tuple(np.percentile(holed[np.isfinite(holed)], (1, 99)))
    assert np.isfinite(found.numbers(holed)).all()
