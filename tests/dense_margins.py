"""Oracles for the margins: the papers' formulas on a dense matrix of cosines, for autograd.

Written from the papers' equations in terms of θ, not from the code under test.
"""

import math

import torch
import torch.nn.functional as F

from kappaface_dist.head import (
    AdaFace,
    ArcFace,
    Combined,
    CosFace,
    CurricularFace,
    ElasticFace,
    KappaFace,
    MagFace,
    NormFace,
    SphereFace,
)

# Every published margin, and the options that change its formula.
MARGINS = {
    "normface": NormFace(),
    "arcface": ArcFace(),
    "cosface": CosFace(),
    "combined": Combined(m1=0.9, m2=0.4, m3=0.15),
    "sphereface": SphereFace(),
    "sphereface4": SphereFace(margin=4.0),
    "kappaface": KappaFace(),
    "adaface": AdaFace(h=3.0),
    "magface": MagFace(lower_norm=2.0, upper_norm=6.0),
    "curricularface": CurricularFace(cosine_decay=0.7),
    "elasticface": ElasticFace(deviation=0.2),
    "elasticface_cosine": ElasticFace(margin=0.35, kind="cosine"),
    "elasticface_plus": ElasticFace(plus=True),
}


def additive_angle(theta_G, m_G):
    """cos(θ + m), on a line in cos θ beyond π, level below 0."""
    value_G = torch.cos(theta_G + m_G)
    value_G = torch.where(theta_G + m_G > math.pi, theta_G.cos() + m_G.cos() - 1.0, value_G)
    return torch.where(theta_G + m_G < 0, torch.ones_like(value_G), value_G)


def target_cosine(margin, theta_G, m_G, norm_G=None, state=None):
    """T / s from the angle. m_G: the class's margin, or what was drawn for the image."""
    kind = type(margin)
    if kind is NormFace:
        return theta_G.cos()
    if kind is CosFace or (kind is ElasticFace and margin.kind == "cosine"):
        return theta_G.cos() - m_G
    if kind is Combined:
        end = (math.pi - margin.m2) / margin.m1
        inside_G = torch.cos(margin.m1 * theta_G + margin.m2)
        return torch.where(theta_G <= end, inside_G, theta_G.cos() - math.cos(end) - 1) - margin.m3
    if kind is SphereFace:
        k_G = torch.floor(margin.margin * theta_G.detach() / math.pi)
        return (-1.0) ** k_G * torch.cos(margin.margin * theta_G) - 2 * k_G
    if kind is AdaFace:
        z_G = (norm_G.detach().clamp(1e-3, 100) - state["mean"]) / (state["std"] + 1e-3)
        g_G = (z_G * margin.h).clamp(-1, 1)
        return additive_angle(theta_G, -margin.margin * g_G) - margin.margin * (g_G + 1)
    if kind is MagFace:
        share_G = (norm_G.clamp(margin.lower_norm, margin.upper_norm) - margin.lower_norm) / (
            margin.upper_norm - margin.lower_norm
        )
        m_G = margin.lower_margin + share_G * (margin.upper_margin - margin.lower_margin)
    return additive_angle(theta_G, m_G)


# Where the running averages begin, in the released code.
START = {"mean": 20.0, "std": 100.0, "t": 0.0}


def update_state(margin, state, target_G, norm_G):
    """The running averages after this step: AdaFace's and CurricularFace's released rules."""
    if isinstance(margin, AdaFace):
        old = margin.norm_decay
        bounded_G = norm_G.detach().clamp(1e-3, 100)
        std = bounded_G.std() if len(bounded_G) > 1 else state["std"]  # one norm deviates from none
        return {
            "mean": old * state["mean"] + (1 - old) * bounded_G.mean(),
            "std": old * state["std"] + (1 - old) * std,
        }
    if isinstance(margin, CurricularFace):
        old = margin.cosine_decay
        return {"t": old * state["t"] + (1 - old) * target_G.detach().mean()}
    return state


def margin_loss(margin, embedding_GD, weight_CD, label_G, m_G, state, kept_C):
    """(loss, new state) of a step, over the classes in kept_C; the loss sees the old state.

    weight_CD: or [C, A, D], of which the nearest of a class counts.
    """
    state = START | state
    norm_G = embedding_GD.norm(dim=1)
    cosine_GC = F.normalize(embedding_GD) @ F.normalize(weight_CD, dim=-1).mT
    if weight_CD.dim() == 3:  # [C, G, A] so far
        cosine_GC = cosine_GC.amax(dim=2).T
    target_G = cosine_GC.gather(1, label_G[:, None])[:, 0]
    value_G = target_cosine(margin, target_G.acos(), m_G, norm_G, state)
    if isinstance(margin, CurricularFace):
        hard_GC = cosine_GC > value_G.detach()[:, None]
        cosine_GC = torch.where(hard_GC, cosine_GC * (state["t"] + cosine_GC), cosine_GC)
    one_hot_GC = F.one_hot(label_G, len(weight_CD)).bool()
    logit_GC = margin.scale * torch.where(one_hot_GC, value_G[:, None], cosine_GC)
    loss = F.cross_entropy(logit_GC.masked_fill(~kept_C, -torch.inf), label_G)
    if isinstance(margin, MagFace):
        a_G = norm_G.clamp(margin.lower_norm, margin.upper_norm)
        loss = loss + margin.penalty_weight * (a_G / margin.upper_norm**2 + 1 / a_G).mean()
    return loss, update_state(margin, state, target_G, norm_G)
