import re
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo

from tasks.redaction import redact

# Long and unlike anything else in the text, so that finding it again means that it leaked.
secrets = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=20).map(
    lambda text: f"S3cr3tBegin{text}S3cr3tEnd"
)


@given(secrets)
def test_a_password_in_a_connection_string_is_hidden(secret: str) -> None:
    shown = redact(f"connecting to {make_conninfo(host='h', password=secret, user='u')}")
    assert "S3cr3t" not in shown


@given(secrets)
def test_a_password_in_an_address_is_hidden(secret: str) -> None:
    shown = redact(f"could not open postgresql://ops:{quote(secret, safe='')}@db.example:5432/x")
    assert "S3cr3t" not in shown
    assert "ops:" in shown
    assert "db.example:5432/x" in shown


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://u:S3cr3t/with@signs:@host/db",
        "PGPASSWORD=S3cr3t",
        "password = 'S3cr3t with \\' spaces' host=h",
        "ALTER ROLE x PASSWORD 'SCRAM-SHA-256$S3cr3t'",
        "ALTER ROLE x PASSWORD E'S3cr3t\\' S3cr3t'",
        "ALTER ROLE x PASSWORD U&'S3cr3t'",
        "ALTER ROLE x PASSWORD $$S3cr3t, and S3cr3t$$",
        "ALTER ROLE x PASSWORD $t1$S3cr3t $$ S3cr3t$t1$ CREATEDB",
        "ALTER ROLE x PASSWORD $$S3cr3t cut off",
        '{"password": "S3cr3t", "host": "h"}',
        "https://host/?sslpassword=S3cr3t&x=1",
        "passphrase: S3cr3t",
        "password='S3cr3t cut off in the mid",
        "key AGE-SECRET-KEY-1S3CR3TQQQQ",
    ],
)
def test_other_ways_to_write_a_secret_are_hidden_too(text: str) -> None:
    assert not re.search("s3cr3t", redact(text), re.IGNORECASE)


@pytest.mark.parametrize(
    "text",
    [
        'FATAL:  password authentication failed for user "ops"',
        "fe_sendauth: no password supplied",
        "postgresql://ops@host:5432/db is not reachable",
        "see https://www.postgresql.org/docs/",
        "update logins set password_changed = $1 where password is not null and cost < $2",
    ],
)
def test_text_without_a_secret_stays_as_it_is(text: str) -> None:
    assert redact(text) == text
