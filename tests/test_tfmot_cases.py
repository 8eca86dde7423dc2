"""Models of tfmot's own tests under LNSScheme: each does what the table in docs/tfmot.md says."""

import pytest

import tests.tfmot_nets  # noqa: F401, tfmot in the order that other tests bear
from tf_lns.tfmot import LNSScheme
from tools import check_tfmot

CASES = {case.name: case for case in check_tfmot.all_cases()}
TABLE = check_tfmot.read_table()


def test_the_table_has_every_case():
    assert list(TABLE) == list(CASES)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.quick])
def test_a_case_does_what_the_table_says(name):
    assert check_tfmot.outcome(CASES[name], LNSScheme()) == TABLE[name][1]


def test_failures_under_lns_are_the_known_ones():
    """Nothing but what no scheme can carry, and tfmot's own wrapper around a user's config."""
    fine = {"ok", "error, as the test wants", "`.keras` [K]"}
    odd = {name: lns for name, (_, lns) in TABLE.items() if lns not in fine}
    assert all(lns.endswith(("[C]", "[F]")) for lns in odd.values()), odd
