"""`cloister move`: takes a tenant from one cell to another while its traffic goes on."""
