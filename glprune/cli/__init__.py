"""The ``glprune`` command.

- ``main``: run, inspect, init, schema and export-server, and the exit codes of all commands.
- ``audit``: the commands for auditors; ``ci``: gate and check; ``demo``: the bundled examples.
- ``console``, ``audit_console``: output on a terminal.
- ``starter_recipe``: the recipe that ``glprune init`` writes; ``column_roles``: the guesses in it.
"""
