"""A Ray cluster on this machine, for tests."""

import os

import lockstep


def paths():
    """PYTHONPATH of another process that is to find this package."""
    return os.pathsep.join(filter(None, [os.path.dirname(os.path.dirname(lockstep.__file__)),
                                         os.environ.get("PYTHONPATH")]))


def start(ray, workers):
    ray.shutdown()
    ray.init(num_cpus=workers, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False,
             logging_level="ERROR", runtime_env={"env_vars": {"PYTHONPATH": paths(), **{
                 name: os.environ[name] for name in ("LOCKSTEP_LIBRARY",) if name in os.environ}}})
