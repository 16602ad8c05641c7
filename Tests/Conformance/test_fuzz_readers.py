"""The corpus that fuzzing the log readers left, and seeded changes of it: Tests/Fuzz/readers.py says what must hold."""

import random
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).resolve().parents[1] / "Fuzz"
sys.path.insert(0, str(FUZZ))
pytest.importorskip("pyarrow", reason="pyarrow is not installed")
readers = pytest.importorskip("readers")
CORPUS = sorted((FUZZ / "corpus" / "readers").iterdir())


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_corpus(path):
    readers.read(path.read_bytes())


def test_seeded_changes():
    draw = random.Random(1)
    files = [path.read_bytes() for path in CORPUS]
    for _ in range(600):
        data = bytearray(draw.choice(files))
        for _ in range(draw.randint(1, 4)):
            place, other = draw.randrange(len(data) + 1), draw.choice(files)
            way = draw.randrange(5)
            if way == 0 and place < len(data):
                data[place] ^= 1 << draw.randrange(8)
            elif way == 1 and place < len(data):
                data[place] = draw.randrange(256)
            elif way == 2:
                del data[place : place + draw.randint(1, 16)]
            elif way == 3:
                start = draw.randrange(len(other))
                data[place:place] = other[start : start + draw.randint(1, 64)]
            elif draw.random() < 0.2:
                del data[place:]
        readers.read(bytes(data))
