-- What every other schema is built on: keys, load dates and the tenants.

CREATE SCHEMA IF NOT EXISTS util;
CREATE SCHEMA auth;

CREATE FUNCTION util.hash_binary(input text) RETURNS bytea
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN sha256(convert_to(input, 'UTF8'));
COMMENT ON FUNCTION util.hash_binary IS 'The hub key of a business key: SHA-256 of its UTF-8 bytes.';

CREATE FUNCTION util.hash_concat(VARIADIC args text[]) RETURNS bytea
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN sha256(convert_to(array_to_string(args, ' | '), 'UTF8'));
COMMENT ON FUNCTION util.hash_concat IS 'The key of a link: SHA-256 of the parts joined by " | ", NULLs left out.';

CREATE FUNCTION util.current_load_date() RETURNS timestamptz
    LANGUAGE sql VOLATILE PARALLEL SAFE
    RETURN clock_timestamp();
COMMENT ON FUNCTION util.current_load_date IS 'The wall clock, so that two versions in one transaction do not collide.';

CREATE FUNCTION util.get_record_source() RETURNS varchar
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN left(coalesce(nullif(current_setting('app.record_source', true), ''), 'onevault'), 100);
COMMENT ON FUNCTION util.get_record_source IS 'The setting app.record_source, or onevault.';

CREATE FUNCTION util.get_system_operations_tenant_hk() RETURNS bytea
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN decode(lpad('01', 64, '0'), 'hex');
COMMENT ON FUNCTION util.get_system_operations_tenant_hk IS 'The tenant of everything that belongs to no customer.';

CREATE FUNCTION util.current_tenant_hk() RETURNS bytea
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN CASE
        WHEN current_setting('app.current_tenant_id', true) ~* '^[0-9a-f]{64}$'
        THEN decode(current_setting('app.current_tenant_id', true), 'hex')
    END;
COMMENT ON FUNCTION util.current_tenant_hk IS
    'The tenant that app.current_tenant_id names in hex; NULL, which matches no row, when it is unset or malformed.';

-- The settings fix how values are written as text: the hash may not depend on who inserts.
CREATE FUNCTION util.set_hash_diff() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path = pg_catalog
    SET timezone = 'UTC'
    SET intervalstyle = 'iso_8601'
    SET extra_float_digits = 1
    SET bytea_output = 'hex'
AS $$
BEGIN
    NEW.hash_diff := (
        SELECT sha256(convert_to(coalesce(jsonb_object_agg(key, value), '{}')::text, 'UTF8'))
        FROM jsonb_each(to_jsonb(NEW) - '{load_date,load_end_date,hash_diff,record_source}'::text[])
        WHERE value <> 'null'
    );
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION util.set_hash_diff IS
    'Sets hash_diff from the attributes that are not NULL, so that a column added later changes no hash.';

CREATE FUNCTION util.refuse_change() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path = pg_catalog
AS $$
BEGIN
    RAISE EXCEPTION '%.% is append-only: % is refused', TG_TABLE_SCHEMA, TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'insufficient_privilege';
END
$$;
COMMENT ON FUNCTION util.refuse_change IS 'Makes a table append-only, as a trigger before UPDATE, DELETE and TRUNCATE.';

CREATE TABLE auth.tenant_h (
    tenant_hk bytea PRIMARY KEY,
    tenant_bk varchar(255) NOT NULL UNIQUE,
    load_date timestamptz NOT NULL DEFAULT util.current_load_date(),
    record_source varchar(100) NOT NULL DEFAULT util.get_record_source()
);

CREATE TABLE auth.tenant_definition_s (
    tenant_hk bytea NOT NULL REFERENCES auth.tenant_h,
    load_date timestamptz NOT NULL DEFAULT util.current_load_date(),
    load_end_date timestamptz,
    hash_diff bytea NOT NULL,
    tenant_name varchar(200) NOT NULL,
    tenant_display_name varchar(200),
    tenant_description text,
    tenant_status varchar(50) NOT NULL DEFAULT 'ACTIVE',
    contact_email varchar(255),
    contact_phone varchar(50),
    contact_address jsonb,
    subscription_level varchar(50) NOT NULL DEFAULT 'STANDARD',
    subscription_start_date timestamptz,
    subscription_end_date timestamptz,
    max_users integer NOT NULL DEFAULT 100,
    max_storage_gb integer NOT NULL DEFAULT 10,
    tenant_settings jsonb NOT NULL DEFAULT '{}',
    feature_flags jsonb NOT NULL DEFAULT '{}',
    compliance_level varchar(50) NOT NULL DEFAULT 'STANDARD',
    data_retention_days integer NOT NULL DEFAULT 2555,
    encryption_required boolean NOT NULL DEFAULT true,
    created_by varchar(100) NOT NULL DEFAULT session_user,
    last_updated_by varchar(100) NOT NULL DEFAULT session_user,
    record_source varchar(100) NOT NULL DEFAULT util.get_record_source(),
    PRIMARY KEY (tenant_hk, load_date),
    CHECK (load_end_date >= load_date),
    CHECK (tenant_status IN ('ACTIVE', 'INACTIVE', 'SUSPENDED', 'PENDING')),
    CHECK (subscription_level IN ('TRIAL', 'STANDARD', 'PREMIUM', 'ENTERPRISE')),
    CHECK (compliance_level IN ('BASIC', 'STANDARD', 'HIPAA', 'SOX', 'GDPR')),
    CHECK (data_retention_days > 0)
);
CREATE UNIQUE INDEX tenant_definition_s_one_open ON auth.tenant_definition_s (tenant_hk) WHERE load_end_date IS NULL;
CREATE TRIGGER set_hash_diff BEFORE INSERT ON auth.tenant_definition_s
    FOR EACH ROW EXECUTE FUNCTION util.set_hash_diff();

INSERT INTO auth.tenant_h (tenant_hk, tenant_bk, record_source)
    VALUES (util.get_system_operations_tenant_hk(), 'SYSTEM_OPERATIONS', 'system');
INSERT INTO auth.tenant_definition_s (tenant_hk, tenant_name, tenant_description, record_source)
    VALUES (
        util.get_system_operations_tenant_hk(),
        'System operations',
        'Owns what belongs to no customer: whole servers, their backups, their upkeep.',
        'system'
    );

ALTER TABLE auth.tenant_h ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON auth.tenant_h USING (tenant_hk = (SELECT util.current_tenant_hk()));
ALTER TABLE auth.tenant_definition_s ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON auth.tenant_definition_s USING (tenant_hk = (SELECT util.current_tenant_hk()));
