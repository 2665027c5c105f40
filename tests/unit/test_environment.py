"""Environment profiles: the numbers, and what production does not start with."""

from dataclasses import replace
from pathlib import Path

import pytest

from tasks import windows
from tasks.environment import (
    NAMES,
    SSL_MODES,
    Setup,
    current_environment,
    load_profile,
    refuse_weaknesses,
    weaknesses,
)
from tasks.errors import Refused

STRONG = Setup(
    recovery_recipients=1,
    server_host="db.example.com",
    server_sslmode="verify-full",
    vault_is_embedded=False,
    server_tls=True,
)
WEAKER: dict[str, tuple[dict[str, object], str]] = {
    "encryption": ({"encryption": False}, "Encryption of backups is off"),
    "verification": ({"verification": False}, "Verification of backups is off"),
    "recovery": ({"recovery_recipients": 0}, "no recovery recipient"),
    "vault": ({"vault_is_embedded": True}, "Set ONEVAULT_VAULT_URL"),
    "server": ({"server_is_embedded": True}, "Set ONEVAULT_SERVER_URL"),
    "verify-ca": (
        {"server_sslmode": "verify-ca"},
        "has sslmode verify-ca. Set sslmode=verify-full",
    ),
    "prefer": ({"server_sslmode": ""}, "has sslmode prefer"),
    "unknown": ({"server_sslmode": "nonsense"}, "has sslmode nonsense"),
    "tls": ({"server_tls": False}, "speaks no TLS"),
}


def weakened(**fields: object) -> Setup:
    return replace(STRONG, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("production", (2555, 300, 60, "FULL", True)),
        ("staging", (30, 60, 5, "BASIC", True)),
        ("development", (30, 60, 5, "BASIC", True)),
    ],
)
def test_the_numbers_of_each_environment(name: str, numbers: tuple[object, ...]) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert numbers == (
        profile.backup_retention_days,
        profile.monitoring_frequency_seconds,
        profile.alert_suppression_minutes,
        profile.audit_level,
        profile.encryption_required,
    )
    assert str(windows.parse(profile.maintenance_window)) == profile.maintenance_window


def test_production_starts_with_a_strong_setup() -> None:
    assert weaknesses(load_profile("production"), STRONG) == []
    refuse_weaknesses(load_profile("production"), STRONG)


@pytest.mark.parametrize("case", WEAKER)
def test_production_refuses_each_weakness(case: str) -> None:
    fields, sentence = WEAKER[case]
    (found,) = weaknesses(load_profile("production"), weakened(**fields))
    assert sentence in found
    assert found.endswith(".")


def test_production_lists_every_weakness_in_one_message() -> None:
    cases = ["encryption", "verification", "recovery", "vault", "server", "prefer", "tls"]
    fields = {name: value for case in cases for name, value in WEAKER[case][0].items()}
    with pytest.raises(Refused, match="The production environment does not start") as caught:
        refuse_weaknesses(load_profile("production"), weakened(**fields))
    assert str(caught.value).count("\n- ") == len(cases)
    for case in cases:
        assert WEAKER[case][1] in str(caught.value)


def test_a_socket_needs_no_tls() -> None:
    setup = weakened(server_host="/run/postgresql", server_sslmode="disable", server_tls=False)
    assert weaknesses(load_profile("production"), setup) == []


def test_development_starts_with_everything_embedded_but_not_in_the_clear() -> None:
    setup = weakened(
        recovery_recipients=0,
        vault_is_embedded=True,
        server_is_embedded=True,
        server_sslmode="prefer",
    )
    assert weaknesses(load_profile("development"), setup) == []
    (found,) = weaknesses(load_profile("development"), replace(setup, encryption=False))
    assert "Encryption" in found


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("encryption_required", False),
        ("verification_required", False),
        ("recovery_recipient_required", False),
        ("embedded_server_allowed", True),
        ("audit_level", "BASIC"),
        ("minimum_sslmode", "prefer"),
    ],
)
def test_a_production_profile_that_was_weakened_is_refused_too(field: str, value: object) -> None:
    profile = load_profile("production").model_copy(update={field: value})
    (found,) = weaknesses(profile, STRONG)
    assert field in found
    assert weaknesses(load_profile("staging").model_copy(update={field: value}), STRONG) == []


@pytest.mark.parametrize("sslmode", SSL_MODES)
def test_sslmodes_have_their_order(sslmode: str) -> None:
    found = weaknesses(load_profile("staging"), weakened(server_sslmode=sslmode))
    assert bool(found) == (sslmode in {"disable", "allow", "prefer"})


@pytest.mark.parametrize("given", [None, "", "prod", "Production", " production"])
def test_there_is_no_default_environment(given: str | None) -> None:
    with pytest.raises(Refused, match="Set it to development, staging or production"):
        current_environment({} if given is None else {"ONEVAULT_ENV": given})
    with pytest.raises(Refused):
        load_profile(given or "")


@pytest.mark.parametrize("name", NAMES)
def test_the_environment_is_read(name: str) -> None:
    assert current_environment({"ONEVAULT_ENV": name}) == name


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (
            "backup_retention_days = 30",
            "backup_retention_dayz = 30",
            "backup_retention_dayz: Extra inputs",
        ),
        ("backup_retention_days = 30", "", "backup_retention_days: Field required"),
        ("backup_retention_days = 30", 'backup_retention_days = "30"', "valid integer"),
        ("backup_retention_days = 30", "backup_retention_days = 0", "greater than 0"),
        ('"prefer"', '"verify"', "minimum_sslmode"),
        ('"always"', '"sometimes"', "is not a maintenance window"),
        (
            'time_zone = "UTC"',
            'time_zone = "Mars"',
            "development.toml is not valid.*is not a time zone",
        ),
        ("encryption_required = true", "encryption_required = yes", "Invalid value"),
    ],
)
def test_a_wrong_profile_is_refused(tmp_path: Path, old: str, new: str, fault: str) -> None:
    text = Path("deployments/environments/development.toml").read_text()
    assert old in text
    (tmp_path / "development.toml").write_text(text.replace(old, new))
    with pytest.raises(Refused, match=fault):
        load_profile("development", tmp_path)


def test_a_missing_profile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="cannot be read: No such file"):
        load_profile("development", tmp_path)


def test_a_profile_cannot_pass_for_another(tmp_path: Path) -> None:
    text = Path("deployments/environments/development.toml").read_text()
    (tmp_path / "development.toml").write_text(f'name = "production"\n{text}')
    assert load_profile("development", tmp_path).name == "development"
