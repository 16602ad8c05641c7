"""Prints what the package needs, with the extras named, one requirement a line: requirements.py [EXTRA...]

So that packages can be installed before the package itself is built. From pyproject.toml, which has them once.
"""

import sys
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where hatchling brings it
    import tomli as tomllib

project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
needed = [*project["dependencies"], *(line for extra in sys.argv[1:] for line in project["optional-dependencies"][extra])]
print("\n".join(dict.fromkeys(needed)))
