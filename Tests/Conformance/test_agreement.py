"""The same bits everywhere, from Python: every subject of Tests/Vectors/agreement.txt, on every instruction set this machine
has and on 1, 2 and 4 threads. Tests/C/agreement_test.c and AgreementTests.swift compute the same from the other languages.

As a program it prints the digests instead: SET THREADS SUBJECT DIGEST."""

import pathlib
import zlib

import numpy as np

import lockstep

ROOT = pathlib.Path(__file__).parents[2]
MODEL = ROOT / "examples/data/chain-sft"
RECORD = ROOT / "Tests/Vectors/agreement.txt"
SETS = [name for name in ("baseline", "avx2", "avx512", "neon") if lockstep.has_instruction_set(name)]
THREADS = (1, 2, 4)
NUMBERS = ("fp32", "fp16", "bf16")
SEQUENCES, PROMPT, RESPONSE = 12, 3, 32
LENGTH = PROMPT + RESPONSE
ROLLOUTS, TOKENS_EACH = 40, 500
LOG = ROLLOUTS * TOKENS_EACH


def bits(count, first=0):
    """32 random bits for each number, the same in every language."""
    x = np.arange(first, first + count, dtype=np.uint32) * np.uint32(2654435761)
    x = (x ^ x >> np.uint32(15)) * np.uint32(2246822519)
    return x ^ x >> np.uint32(13)


def values(count, first=0):
    """Some values in [-0.5, 0.5)."""
    return (bits(count, first) >> np.uint32(8)).astype(np.float32) * np.float32(2**-24) - np.float32(0.5)


def digest(*arrays):
    """CRC-32 of arrays or bytes, one after another."""
    total = 0
    for each in arrays:
        total = zlib.crc32(each if isinstance(each, bytes) else np.ascontiguousarray(each).tobytes(), total)
    return total


def formats(how):
    patterns = bits(70_000).view(np.float32)  # every exponent, subnormals, infinities and NaN
    for name, dtype in ("fp16", "fp16"), ("bf16", "bf16"), ("e4m3fn", "fp8_e4m3fn"), ("e5m2", "fp8_e5m2"):
        parts = []
        for rounding in "nearest_even", "toward_zero", "stochastic":
            narrow = lockstep.convert(patterns, dtype, rounding, seed=7, **how)
            parts += [narrow, lockstep.convert(narrow, "fp32", **how)]
        yield f"convert-{name}", digest(*parts)


def log_probs(how):
    tokens, vocab = 37, 5003
    wide = (values(tokens * vocab) * np.float32(16)).reshape(tokens, vocab)
    targets = np.arange(tokens, dtype=np.int32) * 137 % vocab
    upstream = values(tokens, 900_000)
    for name in NUMBERS:
        logits = lockstep.convert(wide, name, **how)
        found = lockstep.log_probs(logits, targets, temperature=0.75, entropy=True, **how)
        yield f"log-probs-{name}", digest(found.log_probs, found.entropy)
        gradient = lockstep.log_probs_backward(logits, targets, upstream, upstream, temperature=0.75, **how)
        yield f"log-probs-backward-{name}", digest(gradient)


def linear_log_probs(how):
    tokens, size, vocab = 48, 256, 1501
    wide_hidden = values(tokens * size).reshape(tokens, size)
    wide_weight = values(vocab * size, 1_000_003).reshape(vocab, size)
    targets = np.arange(tokens, dtype=np.int32) * 61 % vocab
    for name in NUMBERS:
        hidden, weight = (lockstep.convert(each, name, **how) for each in (wide_hidden, wide_weight))
        found = lockstep.linear_log_probs(hidden, weight, targets, entropy=True, **how)
        gradients = lockstep.linear_log_probs_backward(
            hidden, weight, targets, d_log_probs=values(tokens, 900_000),
            d_hidden=np.zeros((tokens, size), np.float32), d_weight=np.zeros((vocab, size), np.float32), **how)
        yield f"linear-log-probs-{name}", digest(
            found.log_probs, found.entropy, gradients.d_hidden, gradients.d_weight)


def demonstrations():
    """[SEQUENCES x LENGTH] tokens of the chain task."""
    task = lockstep.Task("chain")
    return np.array([[*task.prompt(i, seed=1), *task.demonstration(i, seed=1)] for i in range(SEQUENCES)], np.int32)


def scoring_and_decoding(how):
    tokens = demonstrations()
    ragged = [row[: LENGTH - 2 * i] for i, row in enumerate(tokens)]
    for name in NUMBERS:
        model = lockstep.Model(MODEL, name)
        scores = model.score(ragged, **how)
        yield f"score-{name}", digest(scores.log_probs, scores.entropy)
        # A capacity below the number of sequences: they join as others leave.
        engine = lockstep.RolloutEngine(model, max_tokens=RESPONSE, seed=5, top_p=0.9375, capacity=5, **how)
        engine.add(tokens[0, :PROMPT], range(SEQUENCES))
        yield f"decode-{name}", digest(*(
            part for rollout in engine.run()
            for part in (np.uint64(rollout.id), np.asarray(rollout.tokens, np.int32), rollout.raw_log_probs,
                         rollout.processed_log_probs)))


def training_step(how):
    tokens = demonstrations()
    upstream = values(SEQUENCES * LENGTH).astype(np.float64).reshape(SEQUENCES, LENGTH) / 256
    upstream[:, :PROMPT] = 0
    for name in NUMBERS:
        trainer = lockstep.Trainer(MODEL, name, **how)
        found = trainer.accumulate(list(tokens), upstream.reshape(-1), loss_scale=1024)
        gradients = trainer.gradients()
        norm = lockstep.gradient_norm(gradients, max_norm=1.0, **how)
        lockstep.adamw_step(
            trainer.masters, *np.zeros((2, trainer.count), np.float32), gradients, step=1, gradient_scale=norm.factor,
            **how)
        yield f"training-step-{name}", digest(found.scores.log_probs, gradients, trainer.masters)


def log():
    """(trainer, rollout) log-probs, [ROLLOUTS x TOKENS_EACH]."""
    half = values(LOG) + np.float32(0.5)
    rollout = np.float32(-8) * half * half
    trainer = np.minimum(rollout + values(LOG, LOG) / np.float32(64), np.float32(0))
    return trainer.reshape(ROLLOUTS, TOKENS_EACH), rollout.reshape(ROLLOUTS, TOKENS_EACH)


def accumulators(how):
    trainer, rollout = log()
    total = lockstep.MismatchAccumulator()
    start, count = 0, 1
    while start < ROLLOUTS:  # some cuts
        part = slice(start, min(start + count, ROLLOUTS))
        total.update(trainer[part], rollout[part], ids=np.arange(part.start, part.stop), **how)
        start, count = part.stop, (part.stop - part.start) * 2 % 11
    yield "accumulator", digest(total.to_bytes())


def corrections_and_objectives(how):
    trainer, rollout = log()
    current = trainer + values(LOG, 2 * LOG).reshape(trainer.shape)
    yield "correction", digest(lockstep.correct(trainer, rollout, high=1.001, **how).weights)
    loss = lockstep.objective_loss(
        current, trainer, values(ROLLOUTS, 3 * LOG).astype(np.float64), reference_log_probs=rollout, term="clip",
        high=1.28, aggregation="seq_mean_token_mean", kl="k3", kl_coefficient=0.0625, **how)
    yield "objective", digest(np.float64(loss.loss), loss.d_log_probs)


def subjects(instruction_set, threads):
    """(subject, digest) of all of them, on so many threads of an instruction set."""
    how = {"instruction_set": instruction_set, "threads": threads}
    for each in (formats, log_probs, linear_log_probs, scoring_and_decoding, training_step, accumulators,
                 corrections_and_objectives):
        yield from each(how)


def test_every_subject_has_the_recorded_bits_on_every_instruction_set_and_thread_count():
    recorded = {name: int(value, 16) for name, value in map(str.split, RECORD.read_text().splitlines())}
    for instruction_set in SETS:
        for threads in THREADS:
            assert dict(subjects(instruction_set, threads)) == recorded, (instruction_set, threads)


if __name__ == "__main__":
    for instruction_set in SETS:
        for threads in THREADS:
            for name, value in subjects(instruction_set, threads):
                print(instruction_set, threads, name, f"{value:08x}")
