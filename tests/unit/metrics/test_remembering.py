import pytest

from tasks.metrics.models import AVAILABILITY, Family, FamilyState, Level, Source, Tier
from tasks.metrics.remembering import Memory, pause_seconds


def _family(name: str = "locks", tier: Tier = Tier.LIGHT) -> Family:
    return Family(name, "What it is.", Source.POSTGRES, Level.INSTANCE, tier, 1000, {})


def test_what_never_failed_is_asked():
    memory = Memory()
    assert memory.recall(_family(), 0) is None
    assert not memory.is_on_trial(_family())


def test_a_failure_is_told_without_asking_until_its_pause_is_over():
    memory = Memory()
    memory.failed(_family(), FamilyState.DEGRADED, "It waited for a lock.", 100)
    told = memory.recall(_family(), 129)
    assert told is not None
    assert (told.state, told.message) == (FamilyState.DEGRADED, "It waited for a lock.")
    assert memory.recall(_family(), 130) is None
    assert memory.is_on_trial(_family())
    memory.answered(_family())
    assert not memory.is_on_trial(_family())


@pytest.mark.parametrize(
    ("tier", "times", "seconds"),
    [
        (Tier.LIGHT, 1, 30),
        (Tier.LIGHT, 2, 60),
        (Tier.LIGHT, 8, 3600),
        (Tier.LIGHT, 9999, 3600),
        (Tier.MINUTE, 1, 60),
        (Tier.HOURLY, 1, 3600),
    ],
)
def test_the_pauses_double_up_to_an_hour(tier: Tier, times: int, seconds: float):
    assert pause_seconds(_family(tier=tier), FamilyState.DEGRADED, times) == seconds


def test_failures_in_a_row_lengthen_the_pause():
    memory = Memory()
    memory.failed(_family(), FamilyState.DEGRADED, "one", 0)
    memory.failed(_family(), FamilyState.DEGRADED, "two", 30)
    assert memory.recall(_family(), 89) is not None
    assert memory.recall(_family(), 90) is None


def test_a_refusal_lasts_an_hour_or_until_the_next_connection():
    memory = Memory()
    memory.failed(_family("a"), FamilyState.REFUSED, "no right", 0)
    memory.failed(_family("b"), FamilyState.DEGRADED, "a lock", 0)
    assert memory.recall(_family("a"), 3599) is not None
    assert memory.recall(_family("a"), 3600) is None
    memory.reconnected()
    assert memory.recall(_family("a"), 1) is None
    assert memory.recall(_family("b"), 1) is not None


def test_availability_is_always_asked():
    memory = Memory()
    memory.failed(_family(AVAILABILITY), FamilyState.DEGRADED, "it waited", 0)
    assert memory.recall(_family(AVAILABILITY), 1) is None
