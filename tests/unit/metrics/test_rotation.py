from tasks.metrics.models import Tier
from tasks.metrics.rotation import Rotation


def test_a_thousand_databases_all_have_their_turn_and_what_they_are_owed():
    rotation, names = Rotation(), [f"d{i:04}" for i in range(1000)]
    seen: list[str] = []
    for _ in range(4):
        for name in rotation.owe(names, [Tier.HOURLY])[:250]:
            assert rotation.visit(name) == {Tier.HOURLY}
            seen.append(name)
    assert seen == names


def test_a_database_that_was_not_reached_is_owed_everything_since():
    rotation = Rotation()
    rotation.owe(["a", "b"], [Tier.MINUTE])
    rotation.visit("a")
    assert rotation.owe(["a", "b"], [Tier.HOURLY]) == ["b", "a"]
    assert rotation.visit("b") == {Tier.MINUTE, Tier.HOURLY}
    assert rotation.visit("a") == {Tier.HOURLY}


def test_a_new_database_is_first_and_a_dropped_one_is_forgotten():
    rotation = Rotation()
    rotation.owe(["a", "b"], [Tier.MINUTE])
    rotation.visit("a")
    rotation.visit("b")
    assert rotation.owe(["b", "new"], [Tier.HOURLY]) == ["new", "b"]
    assert rotation.owe(["a", "b"], [Tier.HOURLY]) == ["a", "b"]
    assert rotation.visit("a") == {Tier.HOURLY}


def test_what_the_time_was_too_short_for_is_owed_until_its_turn():
    rotation = Rotation()
    assert not rotation.is_behind
    rotation.owe(["a", "b"], [Tier.HOURLY])
    rotation.visit("a")
    assert rotation.is_behind
    assert [name for name in rotation.owe(["a", "b"], []) if rotation.is_owed(name)] == ["b"]
    rotation.visit("b")
    assert not rotation.is_behind
