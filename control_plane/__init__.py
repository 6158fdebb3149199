"""The control plane: catalog, tenants, placements, routing table, desired state of the cells."""
