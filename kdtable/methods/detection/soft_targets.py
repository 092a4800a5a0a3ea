"""KD between two detectors' class logits: of the same proposals, or of the same anchors.

Faster R-CNN: row i of both networks' logits is the same box, one that the student proposed and sampled. With KL_i the
divergence of the softmaxes over K classes and background, R rows, and "foreground" the rows that a label was assigned
to:

    batchmean    T^2 / R * sum KL_i
    elementmean  T^2 / (R (K + 1)) * sum KL_i
    split        w_f * mean of the foreground's T^2 KL_i + w_b * mean of the background's

RetinaNet has K logits for each anchor, each the log-odds of one class:

    binary       the two-way divergences, summed over anchors and classes, / number of anchors whose largest teacher
                 probability exceeds a threshold (at least 1)
    softmax      KL of softmaxes over the K logits, of anchors that are not ignored, / (their number times K)
"""

from typing import Final

from torch import Tensor

from kdtable.methods.parts.logits import divergence, two_way_divergence

#: How the divergences of rows become one number.
REDUCTIONS: Final = ("batchmean", "elementmean", "split")


def proposals_kd(s: Tensor, t: Tensor, temperature: float = 1.0, *, by_element: bool = False) -> Tensor:
    """The mean over boxes of T^2 KL; 0 without boxes.

    Args:
        s: (R, K + 1) student logits of its sampled proposals.
        t: (R, K + 1) teacher logits of the same boxes, constants.
        temperature: T > 0.
        by_element: divide by K + 1, too.
    """
    return _mean(divergence(s, t, temperature)) / (s.shape[1] if by_element else 1)


def split_kd(s: Tensor, t: Tensor, foreground: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """The means over the boxes of foreground and over those of background; each is 0 without such boxes.

    Args:
        s: (R, K + 1) student logits of its sampled proposals.
        t: (R, K + 1) teacher logits of the same boxes, constants.
        foreground: (R,) bool, whether a label was assigned to the box.
        temperature: T > 0.
    """
    rows = divergence(s, t, temperature)
    return _mean(rows[foreground]), _mean(rows[~foreground])


def anchors_kd(s: Tensor, t: Tensor, temperature: float = 1.0, threshold: float = 0.5) -> Tensor:
    """The "binary" form: two-way divergences of all anchors and classes, over the anchors that the teacher takes.

    Args:
        s: (N, A, K) student logits.
        t: (N, A, K) teacher logits, constants.
        temperature: T > 0.
        threshold: teacher probability above which an anchor counts in the divisor.
    """
    total = temperature**2 * two_way_divergence(s / temperature, t / temperature).sum()
    return total / teacher_positives(t, threshold).clamp(min=1)


def teacher_positives(t: Tensor, threshold: float) -> Tensor:
    """() int64 number of anchors whose largest class probability exceeds a threshold, of logits (N, A, K)."""
    return (t.sigmoid().amax(dim=-1) > threshold).sum()


def anchors_softmax_kd(s: Tensor, t: Tensor, kept: Tensor, temperature: float = 1.0) -> Tensor:
    """The "softmax" form, as DSIG has it; 0 if no anchor is kept.

    Args:
        s: (N, A, K) student logits.
        t: (N, A, K) teacher logits, constants.
        kept: (N, A) bool, whether the anchor is a positive or a negative, not one between.
        temperature: T > 0.
    """
    return _mean(divergence(s[kept], t[kept], temperature)) / s.shape[-1]


def _mean(rows: Tensor) -> Tensor:
    return rows.sum() / max(1, len(rows))
