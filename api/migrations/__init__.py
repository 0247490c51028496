"""The database's history, run by `api.store.migrate` at every start."""
