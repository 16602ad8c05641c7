"""`lockstep sanity`: the paper's experiment in miniature."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import lockstep

from ..report import sanity as report
from ..report.terminal import printable
from ..sanity import experiment, results, runs
from ..sanity.experiment import ALGORITHMS, Pair, Settings
from .shared import BadInput, told
