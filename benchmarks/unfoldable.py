"""Why the normalizers that `tfnorm.fold` leaves in a pattern cannot go: a proof for each.

To fold is to remove the normalizer and to give layers that are there other weights, so that the
model computes the same for every input. Each proof names a property that the model has with the
normalizer and that it has not without, whatever the weights. s and o are the scale and the offset
of a channel, K and b the kernel and the bias of a layer beside it, z its output.

    python -m benchmarks.unfoldable
"""

_OUTPUT = "what it returns is an output of the model, so that no layer after it can take it in"
_BORDER = (
    "for x = 0 a convolution returns b at every position; behind the normalizer it returns "
    "b + Σ K·o over the terms that are not padding, which are fewer at the border"
)
_POSITIONS = (
    "a layer that is the same at all positions returns equal outputs for equal inputs; s differs "
    "between these positions"
)

PROOFS = {
    "after an activation": f"z is a ReLU, never negative for any K and b; s·z + o is; {_OUTPUT}",
    "after the input": "no layer with weights is before it; ReLU, which has none, is after it: "
    "max(0, s·x + o) is not max(0, x)",
    "merged in one": "the first two are one map and stay as 'after the input', the third as 'after "
    "an activation', of a ReLU without weights",
    "other axis": _POSITIONS,
    "channels first, ambiguous": "o needs a bias, and Keras adds the bias of this layer along the "
    "width, because that has as many positions as there are channels: it is one of another axis",
    "channels first, other axis": _POSITIONS,
    "into conv1d causal": _BORDER,
    "into conv2d same": _BORDER,
    "into patches, cut": _BORDER,
    "into conv2d transposed": "as at a border that is padded: an output near it has fewer terms, "
    "so that for x = 0 the model returns b + Σ K·o over another number of them",
    "through maximum, negative scale": "max z over a window is convex in the input for any K and "
    "b; s·max z + o is concave where s < 0, and no affine map",
    "through zero padding": "what is padded is 0 for any K and b; behind the normalizer it is o",
    "through tanh": "tanh z lies between −1 and 1, for any K and b, and comes near both; s·tanh z "
    "+ o lies between o − |s| and o + |s|",
    "through reshape that mixes": _POSITIONS,
    "through flatten": _POSITIONS,
    "through permute, other axis": _POSITIONS,
    "through zero padding to conv2d": _BORDER,
    "input used twice": "z is an operand of the addition as well, which removing the normalizer "
    "turns into 2·z for any K and b; only both at once, 2·K' = (1 + s)·K, would do, which is "
    "another network than the one that the addition stands for, and no one's",
    "pre-activation block": "the first is 'after the input'; the second follows a sum with the "
    "block's input, which has no weights: where the ReLU before the convolution is 0, s·x + o "
    "would have to be x + b, and a ReLU is after it",
    "dense block": "the first and the third follow the block's input, which has no weights, and "
    "are before a ReLU, as 'after the input'",
    "concatenated with relu": f"half of its input is a ReLU, as 'after an activation'; {_OUTPUT}",
    "added to relu": "z + max(0, z') is convex in the input for any K and b; where s < 0, "
    "s·(z + max(0, z')) + o is concave, and no affine map (where every s > 0 it could go into "
    "both convolutions, o into the first: fold leaves these too)",
    "multiplied": "z·z' is 0 on the plane z = 0, for any K and b; s·z·z' + o is 0 where "
    "z·z' = −o/s, which has no plane in it for o ≠ 0",
    "fork to conv2d and relu": "the ReLU, which has no weights, needs s·x + o, as 'after the "
    "input': it has to be computed, and the convolution takes it from there",
    "dropout at all times": "what a dropout drops is 0 for any K and b; behind the normalizer it "
    "is o (at a rate of 0 it drops nothing, which fold does not look at)",
}

if __name__ == "__main__":
    for name, proof in PROOFS.items():
        print(f"{name}\n    {proof}.")
