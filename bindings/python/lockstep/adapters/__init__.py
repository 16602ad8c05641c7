"""Lockstep inside other trainers, under their names: `lockstep.adapters.verl`, `lockstep.adapters.trl`.

docs/Adapters.md says how each is turned on, and where its results differ on purpose.
"""
