-- What a tenant may ask of each router, as `routing.TenantLimits` has it; empty: as for any tenant.
ALTER TABLE tenants ADD COLUMN limits jsonb NOT NULL DEFAULT '{}';
