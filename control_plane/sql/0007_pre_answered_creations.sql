-- attempt is null once the creation was answered: the tenant's first key was about to be shown. Until
-- then a repeated request takes over, also of a tenant that is active already: whoever asked for it may
-- have been told that the outcome is unknown.
ALTER TABLE tenants ALTER COLUMN attempt DROP NOT NULL;
UPDATE tenants SET attempt = NULL WHERE state = 'active';
ALTER TABLE tenants ADD CHECK (attempt IS NOT NULL OR state = 'active');
