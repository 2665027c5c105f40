-- A database that is awkward on purpose: everything here has broken a backup tool somewhere.

-- Several owners, one of them a group, one with settings of its own.
CREATE ROLE demo_owner NOLOGIN;
CREATE ROLE demo_app LOGIN CONNECTION LIMIT 20;
CREATE ROLE "Demo Auditor" LOGIN NOINHERIT;
GRANT demo_owner TO demo_app;
ALTER ROLE demo_app SET statement_timeout = '30s';
ALTER DATABASE demo_shop SET default_statistics_target = 250;
COMMENT ON DATABASE demo_shop IS 'A shop with "quotes", a | pipe and a ''tick''';

CREATE EXTENSION pg_trgm;
CREATE EXTENSION btree_gist;

-- Names that need quotes: mixed case, spaces, a quote, a line end, another script, a reserved word.
CREATE SCHEMA "Sales Dept" AUTHORIZATION demo_owner;
CREATE SCHEMA shop;
SET search_path = shop, public;

CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE TYPE money_range AS RANGE (subtype = numeric);
CREATE DOMAIN email AS text CHECK (VALUE ~ '^[^@\s]+@[^@\s]+$');
CREATE TYPE address AS (street text, city text, zip text);

CREATE TABLE "Sales Dept"."Order ""Items"""
(
    "Id"          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    "select"      text NOT NULL,
    "Größe, cm"   numeric(8, 2),
    "line
end"              integer DEFAULT 1,
    net           numeric(12, 2) NOT NULL,
    gross         numeric(12, 2) GENERATED ALWAYS AS (round(net * 1.19, 2)) STORED
);
INSERT INTO "Sales Dept"."Order ""Items""" ("select", "Größe, cm", net)
SELECT 'item ' || i, i / 7.0, i * 1.01 FROM generate_series(1, 5000) AS i;
ALTER TABLE "Sales Dept"."Order ""Items""" OWNER TO demo_owner;

CREATE TABLE customer
(
    id       uuid PRIMARY KEY,
    name     text NOT NULL,
    mail     email UNIQUE,
    home     address,
    tags     text[] NOT NULL DEFAULT '{}',
    grid     integer[][],
    feeling  mood DEFAULT 'ok',
    spends   money_range,
    profile  jsonb NOT NULL DEFAULT '{}',
    raw      json,
    notes    xml,
    place    point,
    seen     tstzrange,
    photo    bytea
);
INSERT INTO customer (id, name, mail, home, tags, grid, feeling, spends, profile, raw, place, seen, photo)
SELECT md5('customer' || i)::uuid, 'Zoë ''' || i || ' 漢字 🐘', 'c' || i || '@example.org',
       ROW ('Street "' || i || '"', E'City\nTwo', NULL)::address,
       ARRAY ['a', NULL, 'c"d', i::text], ARRAY [[i, 2], [3, 4]], (ARRAY ['sad', 'ok', 'happy'])[1 + i % 3]::mood,
       numrange(i, i + 10)::text::money_range, jsonb_build_object('n', i, 'deep', jsonb_build_array(i, NULL, 'x')),
       json_build_object('order', 'kept', 'i', i), point(i, i / 3.0),
       tstzrange('2026-01-01 00:00+00'::timestamptz + i * interval '1 minute', NULL),
       decode(repeat(lpad(to_hex(i % 256), 2, '0'), 64), 'hex')
  FROM generate_series(1, 20000) AS i;
CREATE INDEX customer_name_trgm ON customer USING gin (name gin_trgm_ops);
CREATE INDEX customer_lower_mail ON customer (lower(mail)) INCLUDE (name) WHERE feeling <> 'sad';

-- Partitions of partitions, with a default and one that is empty.
CREATE TABLE event
(
    at      timestamptz NOT NULL,
    region  text NOT NULL,
    seq     bigint NOT NULL,
    payload jsonb
) PARTITION BY RANGE (at);
CREATE TABLE event_2025 PARTITION OF event FOR VALUES FROM ('2025-01-01 00:00+00') TO ('2026-01-01 00:00+00');
CREATE TABLE event_2026 PARTITION OF event FOR VALUES FROM ('2026-01-01 00:00+00') TO ('2027-01-01 00:00+00')
    PARTITION BY LIST (region);
CREATE TABLE event_2026_eu PARTITION OF event_2026 FOR VALUES IN ('eu');
CREATE TABLE event_2026_us PARTITION OF event_2026 FOR VALUES IN ('us');
CREATE TABLE event_2027 PARTITION OF event FOR VALUES FROM ('2027-01-01 00:00+00') TO ('2028-01-01 00:00+00');
CREATE TABLE event_default PARTITION OF event DEFAULT;
CREATE INDEX event_at ON event USING brin (at);
INSERT INTO event
SELECT '2025-06-01 00:00+00'::timestamptz + i * interval '9 minutes', CASE i % 2 WHEN 0 THEN 'eu' ELSE 'us' END, i,
       jsonb_build_object('i', i, 'text', repeat('payload ', i % 5))
  FROM generate_series(1, 60000) AS i;

-- Constraints of every kind, one never validated; an exclusion; a foreign key that refers to itself.
CREATE TABLE booking
(
    id      bigserial PRIMARY KEY,
    room    integer NOT NULL,
    during  tstzrange NOT NULL,
    parent  bigint REFERENCES booking DEFERRABLE INITIALLY DEFERRED,
    who     uuid REFERENCES customer ON DELETE SET NULL,
    EXCLUDE USING gist (room WITH =, during WITH &&)
);
INSERT INTO booking (room, during, parent, who)
SELECT i % 20, tstzrange('2026-01-01 00:00+00'::timestamptz + i * interval '1 day',
                         '2026-01-02 00:00+00'::timestamptz + i * interval '1 day'),
       CASE WHEN i > 1 THEN i - 1 END, md5('customer' || i)::uuid
  FROM generate_series(1, 2000) AS i;
ALTER TABLE booking ADD CONSTRAINT room_is_small CHECK (room < 100) NOT VALID;

CREATE TABLE empty_table (id integer PRIMARY KEY, what text);
CREATE TABLE no_columns ();
INSERT INTO no_columns SELECT FROM generate_series(1, 3);
CREATE UNLOGGED TABLE scratchpad AS SELECT i AS id, 'lost after a crash' AS why FROM generate_series(1, 100) AS i;
CREATE SEQUENCE ticket_number START 1000 INCREMENT 7;
SELECT nextval('ticket_number'), nextval('ticket_number');
CREATE SEQUENCE never_used;

-- Row level security: a backup that does not see every row must fail, not shrink.
CREATE TABLE tenant_secret (tenant text NOT NULL, secret text NOT NULL);
INSERT INTO tenant_secret SELECT 't' || i % 7, md5(i::text) FROM generate_series(1, 700) AS i;
ALTER TABLE tenant_secret ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenant_secret FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON tenant_secret USING (tenant = current_setting('app.tenant', true));
GRANT SELECT ON tenant_secret TO demo_app, "Demo Auditor";
GRANT SELECT (id, name) ON customer TO "Demo Auditor" WITH GRANT OPTION;
ALTER DEFAULT PRIVILEGES IN SCHEMA shop GRANT SELECT ON TABLES TO demo_app;

CREATE VIEW happy_customer WITH (security_invoker = true) AS
SELECT id, name, (home).city FROM customer WHERE feeling = 'happy';
CREATE MATERIALIZED VIEW spend_by_city AS
SELECT (home).city, count(*) AS customers, max(profile ->> 'n') AS most FROM customer GROUP BY 1;
CREATE UNIQUE INDEX spend_by_city_key ON spend_by_city (city);

CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS
$body$
BEGIN
    -- A dollar-quoted body with ; and ' and "quotes".
    NEW.profile := NEW.profile || jsonb_build_object('touched', true);
    RETURN NEW;
END
$body$;
CREATE TRIGGER customer_touch BEFORE UPDATE ON customer FOR EACH ROW EXECUTE FUNCTION touch();
CREATE PROCEDURE shop."Close Day"() LANGUAGE sql AS 'SELECT 1';
CREATE STATISTICS customer_stats (dependencies) ON name, mail FROM customer;
COMMENT ON COLUMN customer.photo IS E'Two\nlines';

-- Large objects, one of them larger than a page by far.
SELECT lo_from_bytea(0, convert_to(repeat('large object ' || i || ' ', 3000), 'UTF8')) FROM generate_series(1, 5) AS i;
