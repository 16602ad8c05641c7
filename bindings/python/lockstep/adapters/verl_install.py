"""`lockstep.adapters.verl.install()` on import: for verl's settings that name a module."""

from .verl import install

install()
