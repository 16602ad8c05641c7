"""Log-probs from Python: golden numbers in float64, and bits that depend on a row and the options alone."""

from __future__ import annotations

import gc
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lockstep
from conftest import VECTORS, read_safetensors
from lockstep import _library as c

# Against float64 formulas on the exact inputs, with results asked for in fp64. Logits reach 6e4 and the
# vocabulary 49,152; the largest errors seen are 1.3e-7 (log-prob, log-sum-exp), 7e-7 (entropy).
LOG_PROB_TOLERANCE = 2e-7
ENTROPY_TOLERANCE = 1.5e-6
# Gradients are products with fp32 probabilities. Largest errors seen: 6e-8, and for the fused call 8e-7
# of the largest gradient.
GRADIENT_TOLERANCE = 2e-7
LINEAR_GRADIENT_TOLERANCE = 2e-6

CASES = {case["id"]: case for case in json.loads((VECTORS / "logprobs.json").read_text())["cases"]}
LOGITS_CASES = [name for name, case in CASES.items() if "row_kinds" in case]
FUSED_CASES = [name for name in CASES if name.startswith("fused")]
SETS = [name for name in ("baseline", "avx2", "avx512", "neon") if lockstep.has_instruction_set(name)]


@pytest.fixture(scope="module")
def tensors(ml_dtypes):
    """The golden tensors; bf16 is stored as bits in uint16."""
    read = read_safetensors(VECTORS / "logprobs.safetensors")
    return {name: x.view(ml_dtypes.bfloat16) if x.dtype == np.uint16 else x for name, x in read.items()}


def close(mine, exact, tolerance):
    """Within an absolute tolerance; infinities must be the same."""
    finite = np.isfinite(exact)
    assert np.array_equal(mine[~finite], exact[~finite])
    assert np.max(np.abs(mine[finite] - exact[finite]), initial=0) <= tolerance


def same_bits(x, y):
    assert x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()


def test_all_cases_are_run():
    assert len(CASES) == 20 == len(LOGITS_CASES) + len(FUSED_CASES) + 1 and "grad" in CASES


@pytest.mark.parametrize("name", LOGITS_CASES)
def test_golden_log_probs(name, tensors):
    case = CASES[name]
    prefix = case["expected_prefix"]
    result = lockstep.log_probs(
        tensors[case["logits"]], tensors[case["targets"]], temperature=case["temperature"],
        entropy=True, log_sum_exp=True, kept_mass=True, dtype="fp64")
    close(result.log_probs, tensors[prefix + "logp"], LOG_PROB_TOLERANCE)
    close(result.log_sum_exp, tensors[prefix + "logsumexp"], LOG_PROB_TOLERANCE)
    close(result.entropy, tensors[prefix + "entropy"], ENTROPY_TOLERANCE)
    assert (result.kept_mass == 1).all() and (result.log_probs <= 0).all()
    # fp32 is the fp64 result rounded once.
    rounded = lockstep.log_probs(
        tensors[case["logits"]], tensors[case["targets"]], temperature=case["temperature"], entropy=True)
    same_bits(rounded.log_probs, result.log_probs.astype(np.float32))
    same_bits(rounded.entropy, result.entropy.astype(np.float32))


def test_golden_gradient_of_logits(tensors):
    temperature = CASES["grad"]["temperature"]
    logits, targets = tensors["grad.logits"], tensors["grad.targets"]
    forward = lockstep.log_probs(
        logits, targets, temperature=temperature, entropy=True, log_sum_exp=True, dtype="fp64")
    value = tensors["grad.g"] @ forward.log_probs + tensors["grad.h"] @ forward.entropy
    assert abs(value - CASES["grad"]["value"]) <= 1e-5
    for log_sum_exp in (None, forward.log_sum_exp):
        gradient = lockstep.log_probs_backward(
            logits, targets, tensors["grad.g"], tensors["grad.h"], temperature=temperature,
            log_sum_exp=log_sum_exp)
        close(gradient, tensors["grad.grad_logits"], GRADIENT_TOLERANCE)


@pytest.mark.parametrize("name", FUSED_CASES)
@pytest.mark.parametrize("prepared", [False, True])
def test_golden_linear_log_probs(name, prepared, tensors):
    case = CASES[name]
    x, w, y = (tensors[f"{name}.{each}"] for each in ("hidden", "weight", "targets"))
    bias = tensors[f"{name}.bias"] if case["bias"] else None
    options = {"temperature": case["temperature"], "entropy": True, "log_sum_exp": True, "dtype": "fp64"}
    if prepared:
        with lockstep.Head(w, bias) as head:
            result = head.log_probs(x, y, **options)
    else:
        result = lockstep.linear_log_probs(x, w, y, bias, **options)
    close(result.log_probs, tensors[f"{name}.logp"], 2e-6)  # the products are chains in fp32
    close(result.entropy, tensors[f"{name}.entropy"], 4e-6)
    assert result.kept_mass is None


@pytest.mark.parametrize("name", FUSED_CASES)
def test_golden_linear_gradients(name, tensors, ml_dtypes):
    case = CASES[name]
    x, w, y, g = (tensors[f"{name}.{each}"] for each in ("hidden", "weight", "targets", "g"))
    bias = tensors[f"{name}.bias"] if case["bias"] else None
    options = {"temperature": case["temperature"], "d_log_probs": g}
    # Into fp32, so that only the arithmetic is compared.
    into = np.zeros(x.shape, np.float32)
    gradients = lockstep.linear_log_probs_backward(x, w, y, bias, d_hidden=into, **options)
    assert gradients.d_hidden is into
    found = zip((into, gradients.d_weight, gradients.d_bias), ("grad_hidden", "grad_weight", "grad_bias"))
    for mine, key in found:
        if f"{name}.{key}" in tensors:
            exact = tensors[f"{name}.{key}"]
            close(mine, exact, LINEAR_GRADIENT_TOLERANCE * max(1, np.abs(exact).max()))
        else:
            assert mine is None and bias is None
    # In hidden's own format by default: the fp32 gradient rounded once.
    own = lockstep.linear_log_probs_backward(x, w, y, bias, d_weight=False, **options)
    assert own.d_weight is None and own.d_hidden.dtype == x.dtype
    same_bits(own.d_hidden, into.astype(x.dtype))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("tokens", [5, 700, 1200])  # 512 tokens are worked on at a time
def test_a_16_bit_head_gradient_is_the_fp32_one_rounded_once(dtype, tokens, ml_dtypes):
    rng = np.random.default_rng(tokens)
    dtype = np.dtype(getattr(ml_dtypes, dtype) if dtype == "bfloat16" else dtype)
    x, w = (rng.standard_normal(shape).astype(dtype) for shape in ((tokens, 40), (2100, 40)))
    y, g = rng.integers(0, 2100, tokens), rng.standard_normal(tokens).astype(np.float32)
    exact = lockstep.linear_log_probs_backward(x, w, y, d_log_probs=g)
    for threads, before in ((1, 0.0), (2, 1.5)):
        into = np.full(w.shape, before, dtype)
        found = lockstep.linear_log_probs_backward(x, w, y, d_log_probs=g, d_weight=into, threads=threads)
        assert found.d_weight is into
        same_bits(into, (np.float32(before) + exact.d_weight).astype(dtype))
        same_bits(found.d_hidden, exact.d_hidden)


def test_linear_gradients_are_added(tensors):
    x, w, y, g = (tensors[f"fused1.{each}"] for each in ("hidden", "weight", "targets", "g"))
    first = lockstep.linear_log_probs_backward(x, w, y, d_log_probs=g)
    again = lockstep.linear_log_probs_backward(
        x, w, y, d_log_probs=np.zeros_like(g), d_hidden=first.d_hidden.copy(), d_weight=first.d_weight.copy())
    for mine, before in zip(again[:2], first[:2]):
        assert np.array_equal(mine, before)
    assert again.d_bias is None


# Bits

def random_logits(seed: int, rows: int, vocab: int, dtype="float32") -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 4, (rows, vocab)).astype(np.float32)
    logits[rng.random(logits.shape) < 0.02] = -np.inf
    logits[:, 0] = 0  # no row without a finite logit
    return logits.astype(dtype), rng.integers(0, vocab, rows)


options = st.fixed_dictionaries({
    "temperature": st.sampled_from([1.0, 0.7, 2.5]),
    "soft_cap": st.sampled_from([None, 30.0]),
    "top_k": st.sampled_from([None, 1, 5]),
    "top_p": st.sampled_from([None, 0.9]),
    "min_p": st.sampled_from([None, 0.05]),
    "logits_dtype": st.sampled_from([None, "fp16", "bf16"]),
})


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 5000), options)
def test_a_row_does_not_depend_on_its_batch(seed, rows, vocab, chosen):
    """One row alone, on one thread, on the baseline, has the bits it has in any batch, on any."""
    logits, targets = random_logits(seed, rows, vocab)
    extras = {"entropy": True, "log_sum_exp": True, "kept_mass": True}
    batch = lockstep.log_probs(logits, targets, **chosen, **extras)
    for name in SETS:
        for threads in (1, 3):
            other = lockstep.log_probs(
                logits, targets, **chosen, **extras, threads=threads, instruction_set=name)
            for mine, its in zip(other, batch):
                same_bits(mine, its)
    for row in range(rows):
        alone = lockstep.log_probs(logits[row], targets[row], **chosen, **extras, instruction_set="baseline")
        for mine, its in zip(alone, batch):
            same_bits(mine, its[row : row + 1].reshape(()))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 300), st.integers(1, 300),
       st.sampled_from(["float32", "float16"]))
def test_linear_rows_heads_and_sets_agree(seed, rows, hidden_size, vocab, dtype):
    """A head prepared or borrowed, any batch, any threads, any instruction set: the same bits."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (rows, hidden_size)).astype(dtype)
    w = rng.normal(0, 1, (vocab, hidden_size)).astype(dtype)
    b = rng.normal(0, 1, vocab).astype(dtype)
    y = rng.integers(0, vocab, rows)
    batch = lockstep.linear_log_probs(x, w, y, b)
    with lockstep.Head(w, b) as head:
        same_bits(head.log_probs(x, y), batch)
        for name in SETS:
            same_bits(head.log_probs(x, y, threads=2, instruction_set=name), batch)
            same_bits(lockstep.linear_log_probs(x, w, y, b, threads=1, instruction_set=name), batch)
        row = seed % rows
        same_bits(head.log_probs(x[row], y[row]), batch[row : row + 1].reshape(()))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(2, 3000))
def test_gradients_do_not_depend_on_the_machine(seed, rows, vocab):
    logits, targets = random_logits(seed, rows, vocab)
    g = np.random.default_rng(seed + 1).normal(size=(2, rows)).astype(np.float32)
    batch = lockstep.log_probs_backward(logits, targets, *g)
    log_sum_exp = lockstep.log_probs(logits, targets, log_sum_exp=True).log_sum_exp
    same_bits(lockstep.log_probs_backward(logits, targets, *g, log_sum_exp=log_sum_exp), batch)
    for name in SETS:
        same_bits(lockstep.log_probs_backward(logits, targets, *g, threads=1, instruction_set=name), batch)
    in_place = logits.copy()
    assert lockstep.log_probs_backward(in_place, targets, *g, out=in_place) is in_place
    same_bits(in_place, batch)


def test_threads_of_the_caller():
    """Many Python threads at once, one head between them: each gets the bits of a lone call."""
    rng = np.random.default_rng(5)
    x, w = rng.normal(size=(32, 64)).astype(np.float32), rng.normal(size=(700, 64)).astype(np.float32)
    y = rng.integers(0, 700, 32)
    head = lockstep.Head(w)
    expected = head.log_probs(x, y)

    def work(_):
        same_bits(head.log_probs(x, y), expected)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(80))) == [None] * 80


def test_a_head_is_closed_while_it_is_used():
    """A call that runs keeps its head; one that comes later is refused; closing twice is fine."""
    rng = np.random.default_rng(6)
    x, w = rng.normal(size=(64, 64)).astype(np.float32), rng.normal(size=(5000, 64)).astype(np.float32)
    y = rng.integers(0, 5000, 64)
    head = lockstep.Head(w)
    expected = head.log_probs(x, y)

    def work(_):
        try:
            same_bits(head.log_probs(x, y), expected)
        except lockstep.InvalidArgumentError as error:
            assert "head: it is closed" in str(error)

    with ThreadPoolExecutor(4) as pool:
        results = pool.map(work, range(16))
        head.close()
        list(results)
    with pytest.raises(lockstep.InvalidArgumentError, match="head: it is closed"):
        head.log_probs(x, y)
    head.close()


def test_a_head_is_freed_once(monkeypatch):
    """With the object, by close, or at the end of a with block."""
    freed = []
    destroy = c.library.lockstep_head_destroy
    monkeypatch.setattr(
        c.library, "lockstep_head_destroy", lambda pointer: (freed.append(pointer.value), destroy(pointer)))
    head = lockstep.Head(np.ones((3, 2), np.float32))
    del head
    gc.collect()
    assert len(freed) == 1
    head = lockstep.Head(np.ones((3, 2), np.float32))
    head.close()
    head.close()
    assert len(freed) == 2
    with lockstep.Head(np.ones((3, 2), np.float32)):
        assert len(freed) == 2
    gc.collect()
    assert len(freed) == 3 and all(freed)


# Meaning

def test_ignored_rows_are_never_read():
    logits, targets = random_logits(3, 4, 50)
    logits[2] = np.nan
    targets[2] = -100
    result = lockstep.log_probs(logits, targets, entropy=True, log_sum_exp=True, kept_mass=True)
    assert [each[2] for each in result] == [0, 0, 0, 0]
    assert (lockstep.log_probs_backward(logits, targets, np.ones(4, np.float32))[2] == 0).all()
    targets[2] = 7
    with pytest.raises(lockstep.NonFiniteError):
        lockstep.log_probs(logits, targets)
    assert lockstep.log_probs(logits, targets, ignore_index=7)[2] == 0


def test_kept_sets():
    logits = np.log(np.array([[0.5, 0.25, 0.125, 0.125]], np.float32))
    kept = lockstep.log_probs(logits, [0], top_k=2, kept_mass=True, dtype="fp64")
    assert np.isclose(kept.kept_mass[0], 0.75, atol=1e-7)
    assert np.isclose(kept.log_probs[0], np.log(0.5 / 0.75), atol=1e-7)
    assert lockstep.log_probs(logits, [2], top_k=2)[0] == -np.inf
    # Ties with the smallest kept one are kept.
    assert np.isclose(lockstep.log_probs(logits, [3], top_k=3)[0], np.log(0.125), atol=1e-6)
    share = lockstep.log_probs(logits, [1], min_p=0.4, kept_mass=True, dtype="fp64")
    assert np.isclose(share.kept_mass[0], 0.75, atol=1e-7)
    assert np.isclose(share.log_probs[0], np.log(0.25 / 0.75), atol=1e-7)
    assert lockstep.log_probs(logits, [2], min_p=0.4)[0] == -np.inf
    # The temperature comes first: at 2, a probability of 0.25 beside 0.5 is a share of 0.71.
    assert lockstep.log_probs(logits, [1], min_p=0.6)[0] == -np.inf
    assert lockstep.log_probs(logits, [1], min_p=0.6, temperature=2)[0] > -np.inf
    nucleus = lockstep.log_probs(logits, [1], top_p=0.7, dtype="fp64")
    assert np.isclose(nucleus[0], np.log(0.25 / 0.75), atol=1e-7)


def test_soft_cap_and_rounding():
    logits, targets = random_logits(9, 5, 300)
    capped = 20 * np.tanh(logits.astype(np.float64) / 20) / 0.5
    expected = capped[np.arange(5), targets] - np.log(np.exp(capped).sum(1))
    mine = lockstep.log_probs(logits, targets, soft_cap=20, temperature=0.5, dtype="fp64")
    close(mine, expected, 1e-5)
    same_bits(lockstep.log_probs(logits, targets, logits_dtype="fp16"),
              lockstep.log_probs(logits.astype(np.float16), targets))


def test_targets_of_either_width():
    logits, targets = random_logits(4, 6, 20)
    same_bits(lockstep.log_probs(logits, targets.astype(np.int32)), lockstep.log_probs(logits, targets))


def test_empty_inputs():
    empty = np.zeros((0, 8), np.float32)
    assert lockstep.log_probs(empty, np.zeros(0, np.int64)).shape == (0,)
    assert lockstep.log_probs_backward(empty, np.zeros(0, np.int64), np.zeros(0, np.float32)).shape == (0, 8)
    weight = np.zeros((8, 3), np.float32)
    nothing = lockstep.linear_log_probs(np.zeros((0, 3), np.float32), weight, np.zeros(0, np.int32))
    assert nothing.shape == (0,)


# PyTorch's autograd

def reference(torch, logits, targets, temperature):
    y = torch.log_softmax(logits.double() / temperature, -1)
    log_probs = y.gather(-1, targets[..., None])[..., 0]
    return log_probs, -(y.exp() * y).sum(-1)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("float16", 2e-3), ("bfloat16", 2e-2)])
def test_autograd_of_log_probs(torch, dtype, tolerance):
    import lockstep.torch as lt
    torch.manual_seed(0)
    mine = torch.randn(2, 5, 60).mul(3).to(getattr(torch, dtype)).requires_grad_()
    its = mine.detach().clone().requires_grad_()
    targets = torch.randint(0, 60, (2, 5))
    log_probs, entropy = lt.log_probs(mine, targets, temperature=0.8, entropy=True)
    exact = reference(torch, its, targets, 0.8)
    for found, wanted in zip((log_probs, entropy), exact):
        assert torch.allclose(found.double(), wanted, atol=1e-5)
    weights = torch.randn(2, 5)
    ((log_probs * weights).sum() + 0.3 * entropy.sum()).backward()
    ((exact[0] * weights).sum() + 0.3 * exact[1].sum()).backward()
    assert mine.grad.dtype == mine.dtype
    assert torch.allclose(mine.grad.float(), its.grad.float(), atol=tolerance)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-4), ("float16", 2e-3), ("bfloat16", 5e-2)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_autograd_of_linear_log_probs(torch, dtype, tolerance, with_bias):
    import lockstep.torch as lt
    torch.manual_seed(1)
    kind = getattr(torch, dtype)
    mine = [torch.randn(2, 3, 16).to(kind), torch.randn(70, 16).to(kind), torch.randn(70).to(kind)]
    mine = [each.requires_grad_() for each in mine[: 3 if with_bias else 2]]
    its = [each.detach().clone().requires_grad_() for each in mine]
    targets = torch.randint(0, 70, (2, 3))
    lt.linear_log_probs(*mine[:2], targets, *mine[2:]).sum().backward()
    logits = its[0].double() @ its[1].double().T + (its[2].double() if with_bias else 0)
    reference(torch, logits, targets, 1)[0].sum().backward()
    for x, y in zip(mine, its):
        assert x.grad.dtype == kind and torch.allclose(x.grad.float(), y.grad.float(), atol=tolerance)


def test_autograd_where_only_some_inputs_need_it(torch):
    import lockstep.torch as lt
    hidden, weight = torch.randn(4, 8), torch.randn(9, 8, requires_grad=True)
    lt.linear_log_probs(hidden, weight, torch.arange(4)).sum().backward()
    assert hidden.grad is None and weight.grad.shape == (9, 8)
    logits = torch.randn(4, 8)
    assert not lt.log_probs(logits, torch.arange(4)).requires_grad


def test_gradients_of_gradients_are_refused(torch):
    import lockstep.torch as lt
    logits = torch.randn(4, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        lt.log_probs(logits, torch.arange(4)).square().sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
