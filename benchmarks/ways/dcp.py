"""torch.distributed.checkpoint.async_save after each epoch, to local disk; nothing is logged."""

import tempfile

from ways import bare


def main(folder):
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    futures = []
    with tempfile.TemporaryDirectory() as saved:

        def save(epoch, model, optimizer, metrics):
            if futures:
                futures[-1].result()
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            futures.append(dcp.async_save(state, checkpoint_id=f"{saved}/{epoch}"))

        bare.main(folder, save)
        futures[-1].result()
    dist.destroy_process_group()
