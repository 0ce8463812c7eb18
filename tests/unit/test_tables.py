"""What the printed tables make of numbers."""

import numpy as np
import pandas as pd

from probsl.tables import parameters


def test_rounding_errors_print_as_zero_and_small_numbers_do_not():
    table = pd.DataFrame(
        {
            "estimate": [1.0, 3e-17, 2e-9, -1e-12],
            "sd": [np.nan, np.nan, 1e-9, 1e-3],
            "lower": np.nan,
            "upper": np.inf,
        },
        index=list("abcd"),
    )
    printed = parameters(table)
    assert printed["estimate"].tolist() == ["1.000", "0", "2.000e-09", "0"]
    assert printed["sd"].tolist() == ["", "", "1.000e-09", "0.001000"]
    assert list(printed) == ["estimate", "sd", "upper"]


def test_parameters_in_small_units_print_in_full():
    table = pd.DataFrame({"estimate": [2e-13, 1e-14], "sd": np.nan})
    assert parameters(table)["estimate"].tolist() == ["2.000e-13", "1.000e-14"]


def test_a_fit_without_parameters_has_an_empty_table():
    assert parameters(pd.DataFrame({"estimate": [], "sd": []})).empty
