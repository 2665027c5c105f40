"""The vault's own schema: numbered migrations and the migrator that applies them."""
