"""Ray Core: thin actors around ``unicuco``'s classes, the pool that feeds them. Imports only ``unicuco``."""
