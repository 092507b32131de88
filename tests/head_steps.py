"""Steps of the sharded head on this rank's share of given batches."""

import torch

from kappaface_dist.parallel import ranks as parallel


def own_images(x_GX):
    """This rank's images of a global batch."""
    return x_GX.chunk(parallel.world_size())[parallel.rank()]


def take_steps(head, batches, lr):
    """Loss, embedding gradient and rows in use of each step, as lists.

    Gradients are those of the global mean; rows are class numbers.
    """
    losses, gradients, kept = [], [], []
    for embedding_GD, label_G in batches:
        embedding_BD = own_images(embedding_GD).clone().requires_grad_()
        loss = head(embedding_BD, own_images(label_G))
        loss.backward()
        index_S = head.micro_batches.pending[0].rows.index_S
        here = torch.arange(len(head.classes)) if index_S is None else index_S
        kept.append((here + head.classes.start).tolist())
        gradients.append((embedding_BD.grad / parallel.world_size()).numpy())
        head.step(lr)
        losses.append(loss.item())
    return losses, gradients, kept
