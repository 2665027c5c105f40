import itertools

import pytest

from tasks.backup import lifecycle, models
from tasks.backup.lifecycle import BackupStatus as Status
from tasks.backup.lifecycle import VerificationStatus
from tasks.backup.models import Outcome
from tasks.errors import Refused

ALLOWED = {
    (Status.PENDING, Status.RUNNING),
    (Status.PENDING, Status.FAILED),
    (Status.PENDING, Status.CANCELLED),
    (Status.RUNNING, Status.COMPLETED),
    (Status.RUNNING, Status.FAILED),
    (Status.RUNNING, Status.CANCELLED),
    (Status.COMPLETED, Status.VERIFIED),
    (Status.COMPLETED, Status.PARTIAL),
    (Status.COMPLETED, Status.FAILED),
    (Status.COMPLETED, Status.EXPIRED),
    (Status.VERIFIED, Status.PARTIAL),
    (Status.VERIFIED, Status.FAILED),
    (Status.VERIFIED, Status.EXPIRED),
    (Status.PARTIAL, Status.VERIFIED),
    (Status.PARTIAL, Status.FAILED),
    (Status.PARTIAL, Status.EXPIRED),
    (Status.FAILED, Status.VERIFIED),
    (Status.FAILED, Status.PARTIAL),
    (Status.FAILED, Status.EXPIRED),
}


@pytest.mark.parametrize("step", list(itertools.product(Status, Status)), ids="-".join)
def test_only_these_steps_are_taken(step):
    current, new = step
    assert lifecycle.may_follow(current, new) is (step in ALLOWED)


def test_a_refused_step_says_what_may_follow():
    with pytest.raises(
        Refused, match="b1 is RUNNING and cannot become VERIFIED: only CANCELLED, COMPLETED, FAILED"
    ):
        lifecycle.check("b1", Status.RUNNING, Status.VERIFIED)
    with pytest.raises(Refused, match="only nothing may follow"):
        lifecycle.check("b1", Status.EXPIRED, Status.RUNNING)


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("committed", [True, False])
def test_what_was_never_stored_or_is_gone_is_not_verified(status, committed):
    verifiable = committed and status in {
        Status.COMPLETED,
        Status.VERIFIED,
        Status.PARTIAL,
        Status.FAILED,
    }
    if verifiable:
        lifecycle.check_verifiable("b1", status, committed=committed)
    else:
        with pytest.raises(Refused, match=f"b1 is {status} and has nothing to verify"):
            lifecycle.check_verifiable("b1", status, committed=committed)


@pytest.mark.parametrize(
    "current", [Status.COMPLETED, Status.VERIFIED, Status.PARTIAL, Status.FAILED]
)
@pytest.mark.parametrize("restore", Outcome)
def test_failure_fails_and_only_a_restore_verifies(current, restore):
    assert lifecycle.after_verification(current, Outcome.FAIL, restore) is Status.FAILED
    assert lifecycle.after_verification(current, Outcome.PARTIAL, restore) is Status.PARTIAL
    expected = Status.VERIFIED if restore is Outcome.PASS else current
    assert lifecycle.after_verification(current, Outcome.PASS, restore) is expected


@pytest.mark.parametrize(
    ("new", "outcome", "said"),
    [
        (Status.VERIFIED, Outcome.PASS, VerificationStatus.VERIFIED),
        (Status.COMPLETED, Outcome.PASS, VerificationStatus.PARTIAL),
        (Status.PARTIAL, Outcome.PARTIAL, VerificationStatus.PARTIAL),
        (Status.FAILED, Outcome.FAIL, VerificationStatus.FAILED),
    ],
)
def test_what_is_said_of_a_verification(new, outcome, said):
    assert lifecycle.verification_status(new, outcome) is said


@pytest.mark.parametrize(
    ("outcomes", "worst", "passed"),
    [
        ((), Outcome.NOT_RUN, None),
        ((Outcome.NOT_RUN,), Outcome.NOT_RUN, None),
        ((Outcome.PASS, Outcome.NOT_RUN), Outcome.PASS, True),
        ((Outcome.PASS, Outcome.PARTIAL), Outcome.PARTIAL, False),
        ((Outcome.PARTIAL, Outcome.FAIL, Outcome.PASS), Outcome.FAIL, False),
    ],
)
def test_the_worst_rung_counts(outcomes, worst, passed):
    assert models.worst(outcomes) is worst
    assert lifecycle.passed(*outcomes) is passed
