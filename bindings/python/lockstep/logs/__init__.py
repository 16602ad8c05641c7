"""Readers of the logs that training and inference frameworks write.

`open_log` recognises the format and streams a log as batches of whole sequences, in constant memory: log-
probs, mask, where each sequence begins, and who it is. `gather` holds a whole log in memory, `join_logs`
makes one of two that have one engine's log-probs each, `write_log` writes what was read.
"""

from .files import find_files
from .gather import gather, read_prime_rl
from .join import Agreement, JoinedLog, check_same_tokens, join_logs
from .log import Log, LogBatch, LogError, LogFile
from .memory import batches_of_table
from .reader import LogStream, find_log_files, open_log
from .write import write_log

__all__ = [
    "Agreement",
    "JoinedLog",
    "Log",
    "LogBatch",
    "LogError",
    "LogFile",
    "LogStream",
    "batches_of_table",
    "check_same_tokens",
    "find_files",
    "find_log_files",
    "gather",
    "join_logs",
    "open_log",
    "read_prime_rl",
    "write_log",
]
