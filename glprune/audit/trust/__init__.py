"""Whom the auditor trusts for what: keys in roles, owners of originals, authorities for times."""
