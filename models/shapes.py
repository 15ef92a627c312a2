"""The legend of shape letters, used in every annotation and einsum of this project.

B batch rows            S context positions (a row's length, or a cache's capacity)
T query tokens          A anchors (blocks) per row
W block width           Q = A * W block positions per row
L tapped layers         D model width (E: the target's, where the drafter's differs)
N query heads           K key/value heads
G = N // K              H head width
F mlp width             V vocabulary (of the drafter's logits: the draft vocabulary)
P pages of a pool       C positions read from a cache

A block of width W is one anchor, the clean token it starts from, and W-1 masked slots. Slot i predicts the token
i positions after the anchor; slot 0 is the anchor itself and is not scored.
"""
