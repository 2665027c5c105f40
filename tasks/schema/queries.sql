-- name: see_what_others_commit
-- First in the transaction, whatever the role's default: what another migrator did while we waited must be seen.
SET TRANSACTION ISOLATION LEVEL READ COMMITTED;

-- name: limits_while_waiting
-- Before the advisory lock: no lock timeout, so that a second migrator waits its turn.
SELECT set_config('lock_timeout', '0', true), set_config('statement_timeout', %(wait_ms)s, true);

-- name: take_turn
-- One migrator at a time, to the end of the transaction.
SELECT pg_advisory_xact_lock(hashtextextended('onevault:schema_migration', 0));

-- name: limits_while_applying
-- A migration rather gives up than makes the vault's users queue behind it.
SELECT set_config('lock_timeout', %(lock_ms)s, true), set_config('statement_timeout', %(statement_ms)s, true),
    set_config('client_min_messages', 'warning', true), set_config('search_path', 'pg_catalog', true);

-- name: has_log
-- Whether the log of migrations exists.
SELECT to_regclass('util.schema_migration') IS NOT NULL;

-- name: make_log
-- The log of migrations, which the first of them needs already.
CREATE SCHEMA IF NOT EXISTS util;
CREATE TABLE util.schema_migration (
    number integer PRIMARY KEY CHECK (number > 0),
    name text NOT NULL,
    checksum text NOT NULL CHECK (checksum ~ '^[0-9a-f]{64}$'),
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    applied_by text NOT NULL DEFAULT session_user,
    duration_ms bigint NOT NULL
);
COMMENT ON TABLE util.schema_migration IS 'Which migrations made this schema, and the SHA-256 of each.';

-- name: read_log
-- Every migration applied, in order.
SELECT number, name, checksum, applied_at, applied_by, duration_ms FROM util.schema_migration ORDER BY number;

-- name: write_log
-- Remember a migration in the transaction that applied it.
INSERT INTO util.schema_migration (number, name, checksum, duration_ms)
VALUES (%(number)s, %(name)s, %(checksum)s, %(duration_ms)s)
RETURNING number, name, checksum, applied_at, applied_by, duration_ms;
