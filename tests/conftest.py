"""Options, markers and the PostgreSQL that the tests use."""

import os
from pathlib import Path

import pytest

from tasks.errors import OneVaultError
from tasks.programs import Installation, discover, server_programs

# The tests' own connections must not depend on who runs them.
for _name in [name for name in os.environ if name.startswith("PG")]:
    del os.environ[_name]

_MARKED_FOLDERS = ("integration", "flows", "acceptance")
# They are slow, and about Prefect: one version of PostgreSQL is enough.
_PREFECT_FOLDERS = ("flows", "acceptance")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--pg",
        action="append",
        default=[],
        metavar="MAJOR",
        help="PostgreSQL major versions to test with: repeat it, separate by commas, or say all, or ends",
    )


def chosen_majors(config: pytest.Config) -> list[int]:
    """Return the versions asked for: --pg, else ONEVAULT_TEST_PG, else the lowest that is here."""
    here = sorted({i.major for i in discover() if i.has_server})
    asked = config.getoption("--pg") or [os.environ.get("ONEVAULT_TEST_PG", "")]
    words = [word for value in asked for word in value.split(",") if word]
    if "all" in words:
        return here
    if "ends" in words:
        return sorted({*here[:1], *here[-1:]})
    return [int(word) for word in words] or here[:1]


def pytest_report_header(config: pytest.Config) -> str:
    shown = []
    for major in chosen_majors(config):
        try:
            installation = server_programs(major)
            shown.append(f"{installation.version} ({installation.origin})")
        except OneVaultError as error:
            shown.append(str(error))
    return "PostgreSQL: " + (", ".join(shown) or "none found, integration tests are skipped")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run whatever uses ``pg_major`` once for each version chosen, the rest once; flows on the first."""
    if "pg_major" in metafunc.fixturenames:
        majors = chosen_majors(metafunc.config)
        if _folder(metafunc.definition.path) in _PREFECT_FOLDERS:
            majors = majors[:1]
        ids = [f"pg{major}" for major in majors]
        metafunc.parametrize("pg_major", majors, ids=ids, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if (folder := _folder(item.path)) in _MARKED_FOLDERS:
            item.add_marker(folder)


def _folder(path: Path) -> str:
    tests = Path(__file__).parent
    return path.relative_to(tests).parts[0] if path.is_relative_to(tests) else ""


@pytest.fixture(scope="session")
def installation(pg_major: int) -> Installation:
    """The server programs of the version under test."""
    return server_programs(pg_major)
