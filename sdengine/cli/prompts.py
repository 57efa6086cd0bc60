"""Beginnings of ordinary Python that the demo and the end-to-end benchmark complete.

Written for this purpose in the style of everyday code; none is taken from the corpus that the
bundled pair was trained on. They end within a line: where lines are indented, the end of one and
the indent of the next are one token, so a newline at the end of a prompt says that none follows.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PROMPTS", "Prompt"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One beginning.

    Args:
        title: for table rows.
        text: what the model continues.
    """

    title: str
    text: str


PROMPTS = (
    Prompt(
        "parse a config file",
        '''def read_config(path, encoding="utf-8"):
    """Read a file of key = value lines and return a dictionary.

    Empty lines and lines that start with '#' are ignored.
    """
    result = {}
    with open(path, encoding=encoding) as file:
        for line in file:''',
    ),
    Prompt(
        "a cache class",
        '''class LRUCache:
    """A mapping that forgets the least recently used item when it is full."""

    def __init__(self, maxsize=128):
        self.maxsize = maxsize
        self.data = {}

    def get(self, key, default=None):''',
    ),
    Prompt(
        "argparse main",
        """import argparse
import sys


def main(argv=None):
    parser = argparse.ArgumentParser(description="Count the words of a file.")
    parser.add_argument("filename", help="name of the file")
    parser.add_argument("-v", "--verbose", action="store_true",""",
    ),
    Prompt(
        "a subclass of Exception",
        '''class ParseError(ValueError):
    """Raised when the input is not valid."""

    def __init__(self, message, filename=None, lineno=None):
        super().__init__(message)''',
    ),
    Prompt(
        "a retry loop",
        '''import socket
import time


def connect(host, port, timeout=10.0, retries=3):
    """Open a connection to (host, port) and return the socket."""
    for attempt in range(retries):
        try:
            sock = socket.create_connection((host, port), timeout)''',
    ),
    Prompt(
        "vector arithmetic",
        """class Vector:
    def __init__(self, x, y):
        self.x = x
        self.y = y

    def __add__(self, other):
        if not isinstance(other, Vector):
            return NotImplemented
        return Vector(self.x + other.x, self.y + other.y)

    def __sub__(self, other):""",
    ),
    Prompt(
        "walk a directory",
        '''import os


def find_files(root, suffix, followlinks=False):
    """Yield the path of every file below root whose name ends with suffix."""
    for dirpath, dirnames, filenames in os.walk(root, followlinks=followlinks):''',
    ),
    Prompt(
        "binary search",
        '''def search(items, value, lo=0, hi=None):
    """Return the index of value in the sorted list items, or -1."""
    if lo < 0:
        raise ValueError('lo must be non-negative')
    if hi is None:''',
    ),
)
