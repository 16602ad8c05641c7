"""A loss scaler is a state machine: told of each step whether a gradient overflowed, it says whether to skip the step,
and moves the scale as its original does. Saved in the middle it goes on as if nothing had happened."""

import lockstep

OVERFLOWS = [1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]

for name in ("torch", "deepspeed", "megatron"):
    scaler = lockstep.LossScaler(name, initial_scale=1024, growth_interval=3)
    print(f"{name}:", end="")
    for step, overflow in enumerate(OVERFLOWS):
        if step == len(OVERFLOWS) // 2:
            scaler = lockstep.LossScaler.from_bytes(scaler.to_bytes())  # as with a checkpoint
        report = scaler.update(overflow)
        print(f" {report.scale:.0f}{' (skip)' if report.skip else ''}", end="")
    print(f"; {report.skipped} of {report.steps} skipped, {report.growths} growths")

# What scalers would have done with the largest gradients of a recorded run.
replay = lockstep.replay_loss_scaler([0.2, 0.3, 1.5, 0.1, 0.1, 40.0, 0.2, 0.1])
print("replayed:", *(f"{scale:.0f}" for scale in replay.scales), end="")
print(f"; {replay.report.skipped} skipped, the last is step {replay.report.last_skipped}")
