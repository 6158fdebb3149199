"""The router: sends each tenant's requests to its cell; no business logic."""
