"""Logs whose causes are known: the real rollouts of examples/data, each cause applied to them.

What needs no logits (storage, alignment, ends, outliers) is done to the log-probs of examples/data.
Temperatures and truncation are not modelled: Tests/Vectors/causes.npz holds, for contexts of those
rollouts, tokens drawn from the model's full distribution under each sampler, and their log-probs by three
engines (Tests/Vectors/README.md). An FP16 pair of these is the BF16 pair with its noise divided by 8. Other
weights are modelled as noise of a rounding coarser than any format's.

Prompts are split in two: `part` 0 are those on which the thresholds were chosen, 1 those held out.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
REAL = ("bf16", "bf16-rollout.fp32-trainer", "fp16", "fp16-rollout.fp32-trainer")


@dataclass(frozen=True)
class LabelledLog:
    """A log, and what was done to it."""

    name: str
    trainer: NDArray[np.float32]
    rollout: NDArray[np.float32]
    offsets: NDArray[np.int64]
    causes: frozenset[str] = field(default=frozenset())

    def sequences(self) -> list[slice]:
        return [slice(a, b) for a, b in zip(self.offsets, self.offsets[1:], strict=False)]

    def changed(self, cause: str, how: str, **arrays: NDArray) -> LabelledLog:
        """This log with a cause applied."""
        columns = {name: np.asarray(values, np.int64 if name == "offsets" else np.float32)
                   for name, values in arrays.items()}
        return replace(self, name=f"{self.name} + {how}", causes=self.causes | {cause}, **columns)


Change = Callable[[LabelledLog, np.random.Generator], LabelledLog]


def _offsets(lengths: list[int] | NDArray) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


@cache
def real(name: str, part: int) -> LabelledLog:
    """A log of examples/data: half of its prompts."""
    columns: tuple[list, list] = ([], [])
    path = ROOT / "examples" / "data" / f"smollm2-135m.{name}.jsonl.gz"
    for line in gzip.open(path, "rt", encoding="utf-8"):
        record = json.loads(line)
        if int(record["env_name"].removeprefix("group-")) % 2 == part:
            mask = np.array(record["loss_mask"])
            for column, key in zip(columns, ("trainer_logprobs", "inference_logprobs"), strict=True):
                column.append(np.array(record[key], np.float32)[mask])
    trainer, rollout = map(np.concatenate, columns)
    return LabelledLog(name, trainer, rollout, _offsets([len(values) for values in columns[0]]))


@cache
def _vectors() -> dict[str, NDArray]:
    with np.load(ROOT / "Tests" / "Vectors" / "causes.npz") as file:
        return {name: file[name] for name in file.files}


def samplers() -> list[dict[str, float]]:
    return [json.loads(text) for text in _vectors()["samplers"]]


def sampled(index: int, part: int, trainer: str, mode: str, divisor: float = 1) -> LabelledLog:
    """Tokens drawn by a sampler of `causes.npz`.

    Args:
        trainer: "bf16" or "fp32", what the trainer computes in.
        mode: what the columns hold. "unscaled": the trainer forgot temperature and truncation. "raw": the
            rollout logged its log-probs from before the temperature. "kept": the rollout's are renormalised
            over the kept set. "replayed": the trainer's are.
        divisor: of the noise.
    """
    vectors = _vectors()
    lengths, groups = vectors["lengths"], vectors["groups"]
    every = _offsets(lengths)
    use = [i for i in range(len(lengths)) if groups[i] % 2 == part and lengths[i] >= 3]
    tokens = np.concatenate([np.arange(every[i], every[i + 1]) for i in use])

    def column(key: str) -> NDArray[np.float64]:
        values = vectors.get(f"{index}.{key}")
        return np.zeros(len(tokens)) if values is None else values[tokens].astype(np.float64)

    rollout = column("rollout")
    scored = rollout + column(trainer) / divisor
    if mode == "unscaled":
        raw = f"{index}.rollout_raw" in vectors
        if raw:
            scored = rollout + column("rollout_raw") + column(f"{trainer}_raw") / divisor
        rollout = rollout + column("rollout_kept")
    elif mode == "raw":
        rollout = rollout + column("rollout_raw")
    elif mode == "kept":
        rollout = rollout + column("rollout_kept")
    elif mode == "replayed":
        scored = scored + column("rollout_kept") - column(f"{trainer}_kept") / divisor
    causes = {"raw": {"raw_log_probs"}, "kept": {"truncation"}, "replayed": {"truncation"},
              "unscaled": {"temperature"} | ({"truncation"} if f"{index}.rollout_kept" in vectors else set())}
    name = ", ".join(f"{key} {value:g}" for key, value in samplers()[index].items())
    return LabelledLog(
        f"{trainer}/{divisor:g} {mode} ({name})", np.minimum(scored, 0).astype(np.float32),
        np.minimum(rollout, 0).astype(np.float32), _offsets(lengths[use]), frozenset(causes[mode]))


# What can be done to any log.


def stored(form: str, sides: str) -> Change:
    """Rounds columns to bf16 or fp16."""

    def rounded(values: NDArray[np.float32]) -> NDArray[np.float32]:
        if form == "fp16":
            return values.astype(np.float16).astype(np.float32)
        bits = values.view(np.uint32)  # to nearest even; no log-prob here is a NaN
        return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)

    def change(log: LabelledLog, random: np.random.Generator) -> LabelledLog:
        names = [name for name in ("trainer", "rollout") if name[0] in sides]
        return log.changed("stored_in_16_bits", f"{form} {'+'.join(names)}",
                           **{name: rounded(getattr(log, name)) for name in names})

    return change


def shifted(by: int, share: float, start: float = 0) -> Change:
    """Moves the rollout column of a share of the sequences, from a fraction of their length on."""

    def change(log: LabelledLog, random: np.random.Generator) -> LabelledLog:
        rollout = log.rollout.copy()
        chosen = random.permutation(len(log.offsets) - 1)[:max(1, round(share * (len(log.offsets) - 1)))]
        long = [i for i in chosen if np.diff(log.offsets)[i] >= 16] or [int(np.argmax(np.diff(log.offsets)))]
        for i in long:
            at = slice(log.offsets[i] + int(start * np.diff(log.offsets)[i]), log.offsets[i + 1])
            rollout[at] = np.roll(rollout[at], by)
        return log.changed("misalignment", f"shift {by:+} of {share:.0%} from {start:.0%}", rollout=rollout)

    return change


def permuted(log: LabelledLog, random: np.random.Generator) -> LabelledLog:
    """Gives each sequence the rollout log-probs of another."""
    order = np.roll(np.arange(len(log.offsets) - 1), 1)
    sequences = log.sequences()
    rollout = np.concatenate([np.resize(log.rollout[sequences[j]], s.stop - s.start)
                              for s, j in zip(sequences, order, strict=True)])
    return log.changed("misalignment", "permuted sequences", rollout=rollout)


def wrong_end(which: str, side: str, share: float, value: float | None = None) -> Change:
    """Replaces the first or last log-prob of sequences: by a value, or by one of another token."""

    def change(log: LabelledLog, random: np.random.Generator) -> LabelledLog:
        values = getattr(log, side).copy()
        for sequence in log.sequences():
            if random.random() < share:
                at = sequence.stop - 1 if which == "last" else sequence.start
                values[at] = random.choice(log.trainer) if value is None else value
        what = "other token" if value is None else f"{value:g}"
        return log.changed("ends", f"{which} {side}: {what} in {share:.0%}", **{side: values})

    return change


def unmasked(where: str, count: int, share: float) -> Change:
    """Lets prompt or padding tokens count, for which the rollout column has 0."""

    def change(log: LabelledLog, random: np.random.Generator) -> LabelledLog:
        trainer, rollout, lengths = [], [], []
        for sequence in log.sequences():
            own = (log.trainer[sequence], log.rollout[sequence])
            extra = (random.choice(log.trainer, count) if where == "prompt"
                     else np.full(count, -12 - random.random()), np.zeros(count))
            if random.random() > share:
                extra = (np.zeros(0), np.zeros(0))
            for column, a, b in zip((trainer, rollout), extra, own, strict=True):
                column.append(np.concatenate([a, b] if where == "prompt" else [b, a]))
            lengths.append(len(trainer[-1]))
        return log.changed("ends", f"{count} {where} tokens in {share:.0%}", trainer=np.concatenate(trainer),
                           rollout=np.concatenate(rollout), offsets=_offsets(lengths))

    return change


def outliers(share: float, size: float, sign: int) -> Change:
    """Moves a few trainer log-probs far to one side."""

    def change(log: LabelledLog, random: np.random.Generator) -> LabelledLog:
        trainer = log.trainer.copy()
        able = np.flatnonzero(log.rollout < (-0.05 if sign < 0 else -2 * size))
        hit = random.permutation(able)[:max(3, round(share * len(trainer)))]
        d = sign * size * (0.5 + random.exponential(0.5, len(hit)))
        trainer[hit] = np.minimum(trainer[hit] + d, -1e-6)
        return log.changed("outliers", f"{share:.1%} by {sign * size:+g}", trainer=trainer)

    return change


def coarser(factor: float) -> Change:
    """Multiplies the noise: what other weights look like token by token."""

    def change(log: LabelledLog, random: np.random.Generator) -> LabelledLog:
        d = log.trainer.astype(np.float64) - log.rollout
        return log.changed("other_weights", f"noise x {factor:g}",
                           trainer=np.minimum(log.rollout + factor * d, -1e-7))

    return change


def foreign(kind: str, size: float) -> Change:
    """Noise that is none of the causes: the same for every probability, or one offset a sequence."""

    def change(log: LabelledLog, random: np.random.Generator) -> LabelledLog:
        if kind == "flat":
            d = random.normal(0, size, len(log.trainer))
        else:
            d = np.repeat(random.normal(0, size, len(log.offsets) - 1), np.diff(log.offsets))
        return log.changed("unknown", f"{kind} noise {size:g}", trainer=np.minimum(log.rollout + d, -1e-7))

    return change


def tiny(log: LabelledLog, random: np.random.Generator) -> LabelledLog:
    """The difference of two float32 engines: still rounding."""
    d = random.normal(0, 4e-6, len(log.rollout)) * -np.expm1(log.rollout.astype(np.float64))
    return replace(log, name=f"{log.name} + fp32", trainer=(log.rollout + d).astype(np.float32))


CHANGES: dict[str, list[Change]] = {
    "stored_in_16_bits": [stored(form, sides) for form in ("bf16", "fp16") for sides in ("t", "r", "tr")],
    "misalignment": [*(shifted(by, share) for by in (1, -1) for share in (1, 0.3, 0.05)),
                     shifted(1, 1, 0.3), permuted],
    "ends": [
        *(wrong_end(which, side, share) for which in ("first", "last") for side in ("trainer", "rollout")
          for share in (1, 0.3)),
        *(wrong_end("last", side, share, value) for side, value in
          (("rollout", 0.0), ("trainer", 0.0), ("rollout", -9999.0)) for share in (1, 0.3)),
        unmasked("prompt", 8, 1), unmasked("prompt", 8, 0.3),
        unmasked("padding", 8, 1), unmasked("padding", 2, 0.3),
    ],
    "outliers": [outliers(share, size, sign)
                 for share, size in ((0.003, 2), (0.002, 4), (0.01, 1)) for sign in (-1, 1)],
}


def backgrounds(part: int) -> Iterator[LabelledLog]:
    """Real logs with nothing done to them."""
    yield from (real(name, part) for name in REAL)


def distributions(part: int, divisors: tuple[float, ...] = (1, 8)) -> Iterator[LabelledLog]:
    """Logs of tokens drawn from other distributions than the plain one."""
    for index, sampler in enumerate(samplers()):
        truncates, scales = len(sampler) > 1, sampler["temperature"] != 1
        modes = ["kept", "replayed"] if truncates else ["unscaled", "raw"]
        if truncates and scales:
            modes.append("unscaled")
        for mode in modes:
            for trainer in ("bf16", "fp32"):
                for divisor in divisors:
                    yield sampled(index, part, trainer, mode, divisor)


def singles(part: int, seed: int) -> Iterator[LabelledLog]:
    """Logs with no or one cause."""
    random = np.random.default_rng(seed)
    for log in backgrounds(part):
        yield log
        yield tiny(log, random)
        for changes in CHANGES.values():
            for change in changes:
                yield change(log, random)
        for kind in ("flat", "sequence"):
            for size in (0.03, 0.1):
                yield foreign(kind, size)(log, random)
    for factor in (3, 8):
        yield coarser(factor)(real("bf16", part), random)
    yield from (log for log in distributions(part) if len(log.causes) == 1)


def pairs(part: int, seed: int, each: int = 4) -> Iterator[LabelledLog]:
    """Logs with two causes; storing comes last, as it would."""
    random = np.random.default_rng(seed)
    for log in backgrounds(part):
        for (one, first), (_, second) in combinations(CHANGES.items(), 2):
            for _ in range(each):
                changes = [first[random.integers(len(first))], second[random.integers(len(second))]]
                with_both = log
                for change in reversed(changes) if one == "stored_in_16_bits" else changes:
                    with_both = change(with_both, random)
                yield with_both
    for log in distributions(part):
        if len(log.causes) == 2:
            yield log
        else:
            for changes in CHANGES.values():
                yield changes[random.integers(len(changes))](log, random)
