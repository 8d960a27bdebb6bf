"""The checks of ``glprune verify``, one module each; docs/pages/auditor.md describes C1 to C14."""
