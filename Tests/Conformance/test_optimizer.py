"""AdamW, clipping and schedules: golden numbers, PyTorch, 16-bit masters, and what must not show."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from conftest import VECTORS

import lockstep
from lockstep import AdamW, adamw_step, gradient_norm, learning_rate

ml_dtypes = pytest.importorskip("ml_dtypes")
GOLDEN = json.loads((VECTORS / "optimizer.json").read_text())["cases"]
ADAMW = [case for case in GOLDEN if case["id"].startswith("adamw")]
CLIP = [case for case in GOLDEN if case["id"].startswith("clip")]


def tensors() -> dict[str, np.ndarray]:
    data = (VECTORS / "optimizer.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    dtypes = {"F32": np.float32, "F64": np.float64}
    return {name: np.frombuffer(data[8 + size:][slice(*each["data_offsets"])], dtypes[each["dtype"]])
            .reshape(each["shape"]) for name, each in header.items()}


TENSORS = tensors()


def test_the_golden_cases_are_all_here():
    assert len(ADAMW) == 12 and len(CLIP) == 4 and len(GOLDEN) == 16


@pytest.mark.parametrize("case", ADAMW, ids=[case["id"] for case in ADAMW])
def test_adamw_is_the_float64_recursion_to_float32s_rounding(case):
    options = case["params"]
    of = lambda name: [TENSORS[f"{case['id']}.p{i}.{name}"] for i in range(len(case["shapes"]))]
    parameters = [each.copy() for each in of("init")]
    optimiser = AdamW(parameters, betas=tuple(options["betas"]), epsilon=options["eps"],
                      weight_decay=options["weight_decay"], decays=[True] * len(parameters))
    # As far from the recursion as PyTorch's own float32, and no more than twice that.
    bound = 2 * case["max_abs_f32_minus_f64"]
    for step in range(case["steps"]):
        done = optimiser.step(of(f"grad.{step}"), learning_rate=options["lr"])
        assert not done.skipped and done.step == step + 1
        for mine, exact in zip(parameters, of(f"exact_f64.{step}")):
            assert np.abs(mine - exact).max() <= bound
    for mine, name in ((optimiser.first_moments, "exact_exp_avg.final"), (optimiser.second_moments, "exact_exp_avg_sq.final")):
        for found, exact in zip(mine, of(name)):
            np.testing.assert_allclose(found, exact, rtol=2e-6, atol=1e-7 * np.abs(exact).max())


@pytest.mark.parametrize("case", CLIP, ids=[case["id"] for case in CLIP])
def test_clipping(case):
    gradients = [TENSORS[f"{case['id']}.g{index}"] for index in range(2)]
    found = gradient_norm(gradients, max_norm=case["params"]["max_norm"])
    if case["params"]["norm_type"] == 2.0:
        assert found.norm == pytest.approx(case["total_norm_f64"], rel=1e-14)
        assert found.factor == pytest.approx(case["coefficient_f64"], rel=1e-14)
        for index, gradient in enumerate(gradients):
            np.testing.assert_allclose(gradient.astype(float) * found.factor, TENSORS[f"{case['id']}.exact_f64.g{index}"], rtol=1e-12)
    else:
        assert found.largest == case["total_norm_f64"]


def test_the_norm_is_exact_enough_and_in_a_fixed_order():
    rng = np.random.default_rng(3)
    gradients = [rng.normal(0, 10.0 ** rng.integers(-20, 10), size).astype(np.float32)
                 for size in (1, 31, 33, 65_536, 65_537, 300_001)]
    exact = math.sqrt(math.fsum(float(x) ** 2 for each in gradients for x in each))
    found = gradient_norm(gradients, threads=1)
    assert found.norm == pytest.approx(exact, rel=1e-14) and found.non_finite == 0
    assert found.largest == max(np.abs(each).max() for each in gradients)
    for threads in (2, 3, 7):
        for set_name in ("baseline", "avx2", "avx512", "neon"):
            if lockstep.has_instruction_set(set_name):
                assert gradient_norm(gradients, threads=threads, instruction_set=set_name) == found
    scaled = gradient_norm([each * np.float32(2.0**-8) for each in gradients], scale=2.0**-8, max_norm=found.norm / 2)
    assert scaled.norm == pytest.approx(found.norm) and scaled.factor == pytest.approx(2.0**7, rel=1e-6)
    assert gradient_norm([]) == (0, 0, 1, 0)
    gradients[2][5], gradients[5][299_999] = np.inf, np.nan
    spoiled = gradient_norm(gradients)
    assert spoiled.non_finite == 2 and not math.isfinite(spoiled.norm) and not math.isfinite(spoiled.largest)


def test_bits_do_not_depend_on_threads_or_instruction_set():
    rng = np.random.default_rng(4)
    count = 200_003
    start = [rng.normal(0, 1, count).astype(np.float32) for _ in range(2)] + [rng.random(count).astype(np.float32)]
    gradient = rng.normal(0, 1e-3, count).astype(np.float32)
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        for rounding in (("nearest",) if dtype is np.float32 else ("nearest", "stochastic", "kahan")):
            results = set()
            for threads in (1, 2, 5):
                for set_name in ("baseline", "avx2", "avx512", "neon"):
                    if not lockstep.has_instruction_set(set_name):
                        continue
                    masters, first, second = start[0].astype(dtype), start[1].copy(), start[2].copy()
                    rest = np.zeros(count, dtype) if rounding == "kahan" else None
                    adamw_step(masters, first, second, gradient, compensation=rest, rounding=rounding, seed=9, step=3,
                               threads=threads, instruction_set=set_name)
                    results.add(b"".join(each.tobytes() for each in (masters, first, second, rest) if each is not None))
            assert len(results) == 1, (dtype, rounding)


def test_beside_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(5)
    start = [rng.normal(0, 1, shape).astype(np.float32) for shape in ((7, 5), (11,))]
    theirs = [torch.nn.Parameter(torch.tensor(each, dtype=torch.float64)) for each in start]
    optimiser = torch.optim.AdamW([{"params": theirs[:1], "weight_decay": 0.1}, {"params": theirs[1:], "weight_decay": 0}], lr=0.01)
    mine = [each.copy() for each in start]
    adamw = AdamW(mine, weight_decay=0.1)  # decays matrices, not vectors
    for step in range(20):
        gradients = [(rng.normal(0, 1, each.shape) * 2.0**10).astype(np.float32) for each in start]
        for parameter, gradient in zip(theirs, gradients):
            parameter.grad = torch.tensor(gradient, dtype=torch.float64) / 2.0**10
        norm = torch.nn.utils.clip_grad_norm_(theirs, 0.5)
        optimiser.step()
        done = adamw.step(gradients, learning_rate=0.01, scale=2.0**10, max_norm=0.5)
        assert done.gradients.norm == pytest.approx(norm.item(), rel=1e-12)
    for parameter, found in zip(theirs, mine):
        np.testing.assert_allclose(found, parameter.detach().numpy(), atol=2e-6)


def test_a_step_with_an_infinite_gradient_changes_nothing():
    parameters = [np.ones((3, 3), np.float32), np.ones(5, np.float32)]
    optimiser = AdamW(parameters)
    good = [np.full((3, 3), 0.5, np.float32), np.full(5, 0.5, np.float32)]
    optimiser.step(good, learning_rate=0.1)
    before = [each.tobytes() for each in parameters + optimiser.first_moments + optimiser.second_moments]
    for bad in (np.inf, -np.inf, np.nan):
        gradients = [each.copy() for each in good]
        gradients[1][4] = bad
        done = optimiser.step(gradients, learning_rate=0.1)
        assert done.skipped and done.step == 1 and done.gradients.non_finite == 1
        with pytest.raises(lockstep.NonFiniteError, match="element 4"):
            adamw_step(parameters[1], optimiser.first_moments[1], optimiser.second_moments[1], gradients[1])
    with pytest.raises(lockstep.NonFiniteError, match="too large"):
        adamw_step(parameters[1], optimiser.first_moments[1], optimiser.second_moments[1], np.full(5, 1e19, np.float32))
    assert before == [each.tobytes() for each in parameters + optimiser.first_moments + optimiser.second_moments]


def run(dtype, rounding: str, steps: int, count: int = 4096, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Masters pulled down by steps far below half a unit in their last place: [count], and the exact value."""
    masters = np.ones(count, dtype)
    first, second = np.zeros(count, np.float32), np.zeros(count, np.float32)
    rest = np.zeros(count, dtype) if rounding == "kahan" else None
    gradient = np.ones(count, np.float32)
    for step in range(1, steps + 1):
        adamw_step(masters, first, second, gradient, compensation=rest, step=step, learning_rate=1e-4, weight_decay=0,
                   rounding=rounding, seed=seed)
    value = masters.astype(np.float64) + (0 if rest is None else rest.astype(np.float64))
    return value, 1 - 1e-4 * steps


def test_16_bit_masters_lose_small_steps_unless_rounded_by_chance_or_with_kahan():
    for dtype in (ml_dtypes.bfloat16, np.float16):
        lost, exact = run(dtype, "nearest", 300)
        assert (lost == 1).all()
        kahan, _ = run(dtype, "kahan", 300)
        assert np.abs(kahan - exact).max() < 1e-3 * (1 - exact) + (1e-3 if dtype is not np.float16 else 1e-5)
        chance, _ = run(dtype, "stochastic", 300)
        unit = 2.0**-8 if dtype is not np.float16 else 2.0**-11
        # Of a walk of 300 steps, each a unit with probability 1e-4 / unit.
        assert abs(chance.mean() - exact) < 5 * math.sqrt(300 * 1e-4 * unit / 4096)
        assert chance.std() > 0
        assert (run(dtype, "stochastic", 3)[0] == run(dtype, "stochastic", 3)[0]).all()
        assert (run(dtype, "stochastic", 3)[0] != run(dtype, "stochastic", 3, seed=2)[0]).any()


def test_schedules_beside_transformers():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    optimiser = lambda: torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.3)
    for shape, theirs, share in (
            ("linear", transformers.get_linear_schedule_with_warmup(optimiser(), 10, 50), 0),
            ("cosine", transformers.get_cosine_schedule_with_warmup(optimiser(), 10, 50), 0),
            ("cosine", transformers.get_cosine_with_min_lr_schedule_with_warmup(optimiser(), 10, 50, min_lr_rate=0.1), 0.1),
            ("constant", transformers.get_constant_schedule_with_warmup(optimiser(), 10), 0)):
        for step in range(1, 51):
            theirs.optimizer.step()
            theirs.step()
            mine = learning_rate(step, 0.3, shape=shape, warmup_steps=10, total_steps=50, final_share=share)
            assert mine == pytest.approx(theirs.get_last_lr()[0], rel=1e-12, abs=1e-16), (shape, step)
    assert learning_rate(1, 0.5) == 0.5 and learning_rate(99, 0.5, shape="cosine", total_steps=9, final_share=0.1) == 0.05


@pytest.mark.parametrize("options, word", [
    ({"step": 0}, "step"), ({"learning_rate": -1}, "learning_rate"), ({"learning_rate": math.nan}, "learning_rate"),
    ({"betas": (1, 0.9)}, "beta1"), ({"betas": (0.9, -0.1)}, "beta2"), ({"epsilon": 0}, "epsilon"),
    ({"epsilon": 1e-46}, "epsilon"), ({"weight_decay": -1}, "weight_decay"), ({"weight_decay": 1e9}, "weight_decay"),
    ({"gradient_scale": 0}, "gradient_scale"), ({"gradient_scale": 1e39}, "gradient_scale"),
    ({"rounding": "kahan"}, "rounding"), ({"rounding": "up"}, "rounding"), ({"threads": -1}, "threads"),
    ({"instruction_set": "mmx"}, "instruction_set"),
])
def test_bad_options(options, word):
    arrays = [np.ones(4, np.float32) for _ in range(4)]
    with pytest.raises(lockstep.InvalidArgumentError, match=word):
        adamw_step(*arrays, **options)
    assert all((each == 1).all() for each in arrays)


def test_bad_arrays():
    good = lambda: [np.ones(4, np.float32) for _ in range(4)]
    for place, name in enumerate(("masters", "first_moments", "second_moments", "gradients")):
        for bad in (np.ones(5, np.float32), np.ones(4, np.float64), np.ones(8, np.float32)[::2]):
            arrays = good()
            arrays[place] = bad
            with pytest.raises(lockstep.InvalidArgumentError, match=name if bad.shape != (5,) or place else "moments"):
                adamw_step(*arrays)
    with pytest.raises(lockstep.InvalidArgumentError, match="compensation"):
        adamw_step(np.ones(4, np.float16), *good()[1:], rounding="kahan")
    with pytest.raises(lockstep.InvalidArgumentError, match="compensation"):
        adamw_step(np.ones(4, np.float16), *good()[1:], compensation=np.zeros(4, np.float16))
    with pytest.raises(lockstep.InvalidArgumentError, match="step"):
        learning_rate(0, 1)
    with pytest.raises(lockstep.InvalidArgumentError, match="total_steps"):
        learning_rate(1, 1, shape="linear")
    with pytest.raises(lockstep.InvalidArgumentError, match="final_share"):
        learning_rate(1, 1, final_share=2)
    with pytest.raises(lockstep.InvalidArgumentError, match="scale"):
        gradient_norm(np.ones(3, np.float32), scale=0)
    with pytest.raises(lockstep.InvalidArgumentError, match="max_norm"):
        gradient_norm(np.ones(3, np.float32), max_norm=-1)
