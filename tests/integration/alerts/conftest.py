"""A server in the vault of a test, whose readings the test writes by hand."""

import psycopg
import pytest

from tests.integration.alerts.readings import Readings


@pytest.fixture
def readings(vault: psycopg.Connection) -> Readings:
    """A hand that writes readings."""
    return Readings(vault)
