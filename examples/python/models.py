"""One model as trainer and as rollout engine: what the engine says of the tokens it draws is what scoring says of
them, bit for bit, in fp16 too. Then a trainer in another precision. usage: models.py FOLDER"""

import sys

import numpy as np

import lockstep

PROMPT, DRAWN, GROUP = [11, 3, 58, 90, 7], 8, 3

fp16 = lockstep.Model(sys.argv[1], "fp16")
bf16 = lockstep.Model(sys.argv[1], "bf16")
rollouts = fp16.generate([PROMPT], samples=GROUP, max_tokens=DRAWN, seed=1)

equal = [0, 0]
for rollout in rollouts:
    # As a trainer has them. What is returned is fp32.
    trainer = [model.score([*PROMPT, *rollout.tokens]).log_probs[len(PROMPT):] for model in (fp16, bf16)]
    equal = [sum_ + int((side == rollout.raw_log_probs.astype(np.float32)).sum())
             for sum_, side in zip(equal, trainer)]
    print(f"sequence {rollout.id}:", *rollout.tokens, end="")
    print(f"; the last has log-prob {rollout.raw_log_probs[-1]:.6f}, in bf16 {trainer[1][-1]:.6f}")
print(f"tokens with the bits of the rollout: fp16 trainer {equal[0]} of {GROUP * DRAWN}, bf16 trainer {equal[1]}")
