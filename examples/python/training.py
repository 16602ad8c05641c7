"""Steps of FP16 training, by hand: a scaled backward pass, the scaler's verdict, clipping, AdamW. The first loss scale is
too large on purpose. Gradients are exact sums: how a batch is cut leaves no trace. usage: training.py FOLDER"""

import sys

import numpy as np

import lockstep

SEQUENCES = 8

task = lockstep.Task("chain")
prompts = [task.prompt(index, seed=1) for index in range(SEQUENCES)]
responses = [task.demonstration(index, seed=1) for index in range(SEQUENCES)]
tokens = [[*prompt, *response] for prompt, response in zip(prompts, responses)]
share = 1 / sum(map(len, responses))  # of the loss, the mean of -ln p over the responses
d_log_probs = np.concatenate(
    [[0.0] * len(prompt) + [-share] * len(response) for prompt, response in zip(prompts, responses)])
length = len(tokens[0])

trainer = lockstep.Trainer(sys.argv[1], "fp16")
trainer.accumulate(tokens, d_log_probs, loss_scale=1024)
whole = trainer.gradients()
trainer.clear()
trainer.accumulate(tokens[5:], d_log_probs[5 * length:], loss_scale=1024)
trainer.accumulate(tokens[:5], d_log_probs[:5 * length], loss_scale=1024)
same = np.array_equal(whole, trainer.gradients())
trainer.clear()
print(f"gradients of one batch and of two parts: {'the same bits' if same else 'different'}")

scaler = lockstep.LossScaler("torch", initial_scale=2**25)
first_moments, second_moments = np.zeros((2, trainer.count), np.float32)
updates = 0
for step in range(1, 7):
    scale = scaler.scale
    loss = d_log_probs @ trainer.accumulate(tokens, d_log_probs, loss_scale=scale).scores.log_probs
    gradients = trainer.gradients()  # the scale is out of them already
    trainer.clear()
    norm = lockstep.gradient_norm(gradients, max_norm=1.0)
    skip = scaler.update(norm.non_finite > 0).skip
    print(f"step {step}: loss {loss:.6f}, scale {scale:.0f},", "skipped" if skip else f"gradient norm {norm.norm:.6f}")
    if not skip:
        updates += 1
        lockstep.adamw_step(
            trainer.masters, first_moments, second_moments, gradients, step=updates, gradient_scale=norm.factor,
            weight_decay=0.0)
bits = trainer.masters.view(np.uint32).sum(dtype=np.uint64)
print(f"{trainer.count} masters, the sum of their bit patterns is {bits}")
