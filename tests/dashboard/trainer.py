"""What the dashboard's tests watch: steps, a line now and then, a checkpoint a second, until it is stopped."""

import time

import numpy as np

import holdfast

run = holdfast.init()
state = run.restore(default={"x": np.zeros(10)})
step = run.resume_step or 0
while not run.should_stop:
    step += 1
    time.sleep(0.04)
    run.step(loss=1 / step)
    if step % 10 == 0:
        print(f"step {step} of rank {run.rank}", flush=True)
    run.checkpoint(state, every=25)
