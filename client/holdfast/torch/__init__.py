"""Sharded state of torch: DTensors (FSDP2, tensor parallel) and what goes with them, into a world of any size.

    import holdfast.torch
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    def snapshot():
        model_state, optimizer_state = get_state_dict(model, optimizer)
        return {"model": model_state, "optimizer": optimizer_state, "lr": schedule.state_dict()}

    state = snapshot()
    if holdfast.torch.restore(run, state):     # in place, from as many ranks as there were
        set_state_dict(
            model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
        )
    ...
        holdfast.torch.checkpoint(run, snapshot, every=100)

The planners and the resharding are those of torch.distributed.checkpoint: what is replicated is saved by one rank, and
each rank reads those bytes alone that it needs, from any rank's file. Staging, fencing, checksums and the commit are
those of `run.checkpoint`, and nothing is pickled into a file, or unpickled from one.
"""

from holdfast.torch.loading import load, restore
from holdfast.torch.saving import checkpoint

__all__ = ["checkpoint", "load", "restore"]
