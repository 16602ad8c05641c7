"""Readers of the logs that training and inference frameworks write.

`open_log` recognises the format and streams a log as batches of whole sequences, in constant memory: log-probs,
mask, where each sequence begins, and who it is. `gather` holds a whole log in memory.
"""

from .files import find_files
from .gather import gather, read_prime_rl
from .log import Log, LogBatch, LogError, LogFile
from .reader import LogReader, open_log

__all__ = ["Log", "LogBatch", "LogError", "LogFile", "LogReader", "find_files", "gather", "open_log",
           "read_prime_rl"]
