from __future__ import annotations

import errno

import pytest

from sealsvc.doctor.verdict import Result, Seen, judge, name_of


def seen(**fields: object) -> Seen:
    return Seen(**{"ended": True, "recalled": False, "changed": False, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("what", "result"),
    [
        (seen(), Result.PASSED),
        (seen(recalled=True), Result.PASSED),
        (seen(failed=True, errno=errno.ETXTBSY), Result.REFUSED),
        (seen(failed=True), Result.REFUSED),
        (seen(changed=True), Result.NOT_COVERED),
        (seen(changed=True, failed=True, errno=errno.EIO), Result.NOT_COVERED),
        (seen(ended=False, recalled=True, went_on=True), Result.WAITS),
        (seen(ended=False, changed=True), Result.NOT_COVERED),
        (seen(ended=False, recalled=True, changed=True), Result.NOT_COVERED),
    ],
)
def test_judgement(what: Seen, result: Result) -> None:
    assert judge(what)[0] is result


def test_the_notes_name_what_an_operator_must_know() -> None:
    assert judge(seen(ended=False, recalled=True, went_on=True)) == (Result.WAITS, "")
    assert "no recall" in judge(seen(ended=False, went_on=True))[1]
    assert "did not go on" in judge(seen(ended=False, recalled=True))[1]
    refused_later = seen(ended=False, recalled=True, went_on=True, failed=True, errno=errno.EBUSY)
    assert "EBUSY" in judge(refused_later)[1]
    assert "did not wait" in judge(seen(recalled=True))[1]


def test_errnos_have_the_names_of_the_man_pages() -> None:
    assert name_of(errno.ETXTBSY) == "ETXTBSY"
    assert name_of(errno.EOPNOTSUPP) == "EOPNOTSUPP"
    assert name_of(None) is None
