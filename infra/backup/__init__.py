"""Backup and restore of what a box must not lose: database, keys, ledger, identity, records of images, settings."""
