"""Types, errors, events and the append-only record. Imports nothing else of sandlot."""
