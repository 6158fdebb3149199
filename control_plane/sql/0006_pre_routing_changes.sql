-- What a router is told: not a hundred thousand tenants at every change, but the lines of the routing
-- table that changed since the version it has.

-- The version in which the tenant's line (its placement, its limits) was last changed.
ALTER TABLE placements ADD COLUMN changed_in bigint NOT NULL DEFAULT 1;
UPDATE placements SET changed_in = (SELECT version FROM routing_version);
CREATE INDEX placements_changed_in ON placements (changed_in);

-- Drawn anew with each version. Whoever has a version with another mark has it from a catalog that was
-- restored from a backup since: what changed after that version is not all that differs.
ALTER TABLE routing_version ADD COLUMN mark uuid NOT NULL DEFAULT gen_random_uuid();

-- The last of them; for older ones there is only the whole table.
CREATE TABLE routing_marks (version bigint PRIMARY KEY, mark uuid NOT NULL);
INSERT INTO routing_marks SELECT version, mark FROM routing_version;

CREATE FUNCTION draw_routing_mark() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.mark := gen_random_uuid();
    INSERT INTO routing_marks VALUES (NEW.version, NEW.mark)
    ON CONFLICT (version) DO UPDATE SET mark = excluded.mark;
    DELETE FROM routing_marks WHERE version <= NEW.version - 1000;
    RETURN NEW;
END $$;
CREATE TRIGGER draw_routing_mark BEFORE UPDATE ON routing_version
    FOR EACH ROW EXECUTE FUNCTION draw_routing_mark();

-- By a trigger, so that no change of a line is without its version, whoever makes it. The version's row
-- stays locked until the end of the database transaction: lines become visible in the order of versions.
CREATE FUNCTION raise_routing_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE routing_version SET version = version + 1 RETURNING version INTO NEW.changed_in;
    RETURN NEW;
END $$;
CREATE TRIGGER raise_routing_version BEFORE INSERT OR UPDATE ON placements
    FOR EACH ROW EXECUTE FUNCTION raise_routing_version();

CREATE FUNCTION change_routing_line() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE placements SET changed_in = changed_in WHERE organization_id = NEW.organization_id;
    RETURN NULL;
END $$;
CREATE TRIGGER change_routing_line AFTER UPDATE OF limits ON tenants
    FOR EACH ROW WHEN (OLD.limits IS DISTINCT FROM NEW.limits) EXECUTE FUNCTION change_routing_line();
