"""The oracle for the sharded head: the whole class matrix in one place, float64, torch autograd."""

import math

import torch
import torch.nn.functional as F


def dense_loss(embedding_GD, weight_CD, label_G, margin_C, scale, kept_C=None, kind="angular"):
    """Materialised logits, as everyone writes it. kept_C: classes that take part (None: all)."""
    cosine_GC = F.normalize(embedding_GD) @ F.normalize(weight_CD).T
    one_hot_GC = F.one_hot(label_G, len(weight_CD)).bool()
    target_G = cosine_GC[one_hot_GC]
    margin_G = margin_C[label_G]
    if kind == "angular":
        theta_G = torch.arccos(target_G.clamp(-1 + 1e-15, 1 - 1e-15))
        inside_G = theta_G + margin_G < math.pi
        target_G = torch.where(
            inside_G, torch.cos(theta_G + margin_G), target_G + margin_G.cos() - 1.0
        )
    else:
        target_G = target_G - margin_G
    logit_GC = scale * torch.where(one_hot_GC, target_G[:, None], cosine_GC)
    if kept_C is not None:
        logit_GC = logit_GC.masked_fill(~kept_C, -torch.inf)
    return F.cross_entropy(logit_GC, label_G)


def torch_optimizer(rows, weight_CD):
    """The torch.optim optimizer whose formula a RowOptimizer states."""
    if type(rows).__name__ == "SGDRows":
        return torch.optim.SGD(
            [weight_CD], lr=1.0, momentum=rows.momentum, weight_decay=rows.weight_decay
        )
    return torch.optim.AdamW(
        [weight_CD],
        lr=1.0,
        betas=(rows.beta1, rows.beta2),
        eps=rows.epsilon,
        weight_decay=rows.weight_decay,
    )
