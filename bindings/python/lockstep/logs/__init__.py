"""Readers of the logs that training frameworks write.

A reader streams a file line by line and packs what a diagnosis needs: the two log-prob columns, the
mask, and where each sequence begins. Nothing else of the file is kept in memory.
"""

from .files import find_files
from .log import Log, LogError, LogFile
from .prime_rl import read_prime_rl

__all__ = ["Log", "LogError", "LogFile", "find_files", "read_prime_rl"]
