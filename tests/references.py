"""The normalizers in NumPy and float64, written from the papers, for the tests to compare with.

Every class holds the state of one layer over steps. `step` takes what a training step sees and
returns a `Step`: outputs and every gradient of L = Σ y·dy. No line here comes from tfnorm.

Masked positions (mask False) count in no statistic and no gradient statistic. They are normalized
with the statistics of the others, and their dx is the direct term alone. A group of which every
position is masked leaves its state as it was, while counters go on.
"""

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Step:
    """What one training step gives; `extra` has gradients of a method's own parameters."""

    y: np.ndarray
    dx: np.ndarray
    dgamma: np.ndarray
    dbeta: np.ndarray
    extra: dict = field(default_factory=dict)


class Positions:
    """Sees [N, ..., C, ...] as one [M, C] array a group, and puts such arrays together again."""

    def __init__(self, x, axis=-1, groups=1, mask=None):
        last = np.moveaxis(np.asarray(x, np.float64), axis, -1)
        self.axis, self.groups, self.shape = axis, groups, last.shape
        if mask is None:
            mask = np.ones(last.shape[:-1], bool)
        self.valid = [m.reshape(-1) for m in np.split(np.asarray(mask), groups)]

    def split(self, x):
        last = np.moveaxis(np.asarray(x, np.float64), self.axis, -1)
        return [part.reshape(-1, last.shape[-1]) for part in np.split(last, self.groups)]

    def join(self, parts):
        channels = parts[0].shape[-1]
        last = np.concatenate(parts).reshape(*self.shape[:-1], channels)
        return np.moveaxis(last, -1, self.axis)


def moments(x, valid):
    """Mean and biased variance of [M, C] over its valid rows; zeros where there is none."""
    rows = x[valid]
    if not len(rows):
        return np.zeros(x.shape[1]), np.zeros(x.shape[1])
    return rows.mean(0), np.mean((rows - rows.mean(0)) ** 2, 0)


def batch_normalize(x, dy, valid, gamma, beta, epsilon):
    """(y, dx, dγ, dβ, mean, variance) of one group, by the formulas of the BN paper."""
    mean, variance = moments(x, valid)
    count = max(valid.sum(), 1)
    sigma = np.sqrt(variance + epsilon)
    normalized = (x - mean) / sigma
    dnormalized = gamma * dy
    g = dnormalized[valid].sum(0) / count
    psi = (normalized * dnormalized)[valid].sum(0) / count
    dx = (dnormalized - np.where(valid[:, None], g + normalized * psi, 0)) / sigma
    dgamma = (dy * normalized)[valid].sum(0)
    return gamma * normalized + beta, dx, dgamma, dy[valid].sum(0), mean, variance


class Reference:
    """What all layers share: γ, β, the moving values and the formula of inference."""

    def __init__(
        self,
        gamma,
        beta,
        moving_mean,
        moving_variance,
        *,
        momentum=0.99,
        epsilon=1e-3,
        axis=-1,
        groups=1,
    ):
        arrays = (gamma, beta, moving_mean, moving_variance)
        self.gamma, self.beta, self.moving_mean, self.moving_variance = (
            np.array(a, np.float64) for a in arrays
        )
        self.momentum, self.epsilon, self.axis, self.groups = momentum, epsilon, axis, groups

    def infer(self, x):
        x = np.moveaxis(np.asarray(x, np.float64), self.axis, -1)
        sigma = np.sqrt(self.moving_variance + self.epsilon)
        y = self.gamma * (x - self.moving_mean) / sigma + self.beta
        return np.moveaxis(y, -1, self.axis)

    def decay(self, old, news, positions):
        """ema ← α·ema + (1 − α)·new in each group that saw something; their mean."""
        updated = [
            self.momentum * old + (1 - self.momentum) * new if valid.any() else old
            for new, valid in zip(news, positions.valid)
        ]
        return np.mean(updated, 0)


class BatchNormalization(Reference):
    """Ioffe & Szegedy (2015)."""

    def step(self, x, dy, mask=None):
        positions = Positions(x, self.axis, self.groups, mask)
        results = [
            batch_normalize(*arrays, self.gamma, self.beta, self.epsilon)
            for arrays in zip(positions.split(x), positions.split(dy), positions.valid)
        ]
        y, dx, dgamma, dbeta, mean, variance = zip(*results)
        self.moving_mean = self.decay(self.moving_mean, mean, positions)
        self.moving_variance = self.decay(self.moving_variance, variance, positions)
        return Step(positions.join(y), positions.join(dx), sum(dgamma), sum(dbeta))


class SynchronizedBatchNormalization(Reference):
    """BN over the batches of all replicas; `step` takes lists, one entry a replica."""

    def step(self, xs, dys, masks=None):
        masks = masks or [None] * len(xs)
        views = [Positions(x, self.axis, 1, mask) for x, mask in zip(xs, masks)]
        x = np.concatenate([view.split(x)[0] for view, x in zip(views, xs)])
        dy = np.concatenate([view.split(dy)[0] for view, dy in zip(views, dys)])
        valid = np.concatenate([view.valid[0] for view in views])
        y, dx, _, _, mean, variance = batch_normalize(
            x, dy, valid, self.gamma, self.beta, self.epsilon
        )
        if valid.any():
            keep = self.momentum
            self.moving_mean = keep * self.moving_mean + (1 - keep) * mean
            self.moving_variance = keep * self.moving_variance + (1 - keep) * variance
        steps, start = [], 0
        for view in views:
            own = slice(start, start + len(view.valid[0]))
            start = own.stop
            rows = valid[own]
            normalized = (x[own] - mean) / np.sqrt(variance + self.epsilon)
            steps.append(
                Step(
                    view.join([y[own]]),
                    view.join([dx[own]]),
                    (dy[own] * normalized)[rows].sum(0),
                    dy[own][rows].sum(0),
                )
            )
        return steps


class BatchRenormalization(Reference):
    """Ioffe (2017), Algorithm 1; r_max and d_max are functions of the steps taken before."""

    def __init__(self, *args, r_max, d_max, steps=0, **kwargs):
        super().__init__(*args, **kwargs)
        self.r_max, self.d_max, self.steps = r_max, d_max, steps

    def step(self, x, dy, mask=None):
        positions = Positions(x, self.axis, self.groups, mask)
        r_max, d_max = self.r_max(self.steps), self.d_max(self.steps)
        moving_sigma = np.sqrt(self.moving_variance + self.epsilon)
        results = []
        for x_g, dy_g, valid in zip(positions.split(x), positions.split(dy), positions.valid):
            mean, variance = moments(x_g, valid)
            m = max(valid.sum(), 1)
            sigma = np.sqrt(variance + self.epsilon)
            r = np.clip(sigma / moving_sigma, 1 / r_max, r_max)
            d = np.clip((mean - self.moving_mean) / moving_sigma, -d_max, d_max)
            normalized = r * (x_g - mean) / sigma + d
            # The equations of page 4 of the paper, line by line.
            dnormalized = dy_g * self.gamma
            inside = np.where(valid[:, None], dnormalized, 0)
            dsigma = (inside * (x_g - mean) * -r / sigma**2).sum(0)
            dmean = (inside * -r / sigma).sum(0)
            through = dsigma * (x_g - mean) / (m * sigma) + dmean / m
            dx = dnormalized * r / sigma + np.where(valid[:, None], through, 0)
            y = self.gamma * normalized + self.beta
            dgamma = (dy_g * normalized)[valid].sum(0)
            results.append((y, dx, dgamma, dy_g[valid].sum(0), mean, sigma))
        y, dx, dgamma, dbeta, means, sigmas = zip(*results)
        self.moving_mean = self.decay(self.moving_mean, means, positions)
        # Each group's σ is averaged as the paper does; groups are averaged as replicas are: in
        # what a replica stores, σ² − ε.
        keep = self.momentum
        self.moving_variance = np.mean(
            [
                (keep * moving_sigma + (1 - keep) * sigma) ** 2 - self.epsilon
                if valid.any()
                else self.moving_variance
                for sigma, valid in zip(sigmas, positions.valid)
            ],
            0,
        )
        self.steps += 1
        return Step(positions.join(y), positions.join(dx), sum(dgamma), sum(dbeta))


class MovingAverageBatchNormalization(Reference):
    """Yan et al. (2020), equations 15-20, as their code has them. Its backward is its own.

    `squares` and `gradients` are the ring buffers [window, G, C] of χ²_B and Ψ_B; step t (the
    first is 1) writes row t mod window. The averages start when the longer one is full. Rows that a
    group has never written, because it was empty in their steps, count in none; `*_weight` are 1
    where it has, or shares of replicas after these were averaged.
    """

    def __init__(
        self,
        *args,
        window,
        warmup_steps,
        correction_start_step,
        correction_limit,
        gradient_window=None,
        steps=0,
        squares=None,
        gradients=None,
        square_weight=None,
        gradient_weight=None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        gradient_window = gradient_window or window
        self.longest, self.warmup_steps = max(window, gradient_window), warmup_steps
        self.correction_start_step, self.correction_limit = correction_start_step, correction_limit
        self.steps = steps
        channels = len(self.gamma)
        self.squares = self._buffer(squares, window, channels)
        self.gradients = self._buffer(gradients, gradient_window, channels)
        self.square_weight = self._buffer(square_weight, window, 1)
        self.gradient_weight = self._buffer(gradient_weight, gradient_window, 1)

    def _buffer(self, values, window, channels):
        if values is None:
            return np.zeros((window, self.groups, channels))
        return np.array(values, np.float64)

    def _average(self, buffer, weight, group, new, valid):
        """The new value into the buffer; the value to use."""
        t = self.steps + 1
        if valid.any():
            buffer[t % len(buffer), group] = new
            weight[t % len(buffer), group] = 1
        if t <= self.longest or t < self.warmup_steps:
            return new
        total = weight[:, group].sum()
        return buffer[:, group].sum(0) / total if total else np.zeros_like(new)

    def step(self, x, dy, mask=None):
        positions = Positions(x, self.axis, self.groups, mask)
        corrected = self.steps + 1 > self.correction_start_step
        results = []
        for group, (x_g, dy_g, valid) in enumerate(
            zip(positions.split(x), positions.split(dy), positions.valid)
        ):
            m = max(valid.sum(), 1)
            square = (x_g[valid] ** 2).sum(0) / m
            chi2 = self._average(self.squares, self.square_weight, group, square, valid)
            chi = np.sqrt(chi2 + self.epsilon)
            r = chi / np.sqrt(self.moving_variance + self.epsilon)
            r = np.clip(r, 1 / self.correction_limit, self.correction_limit) if corrected else 1.0
            big_y = x_g / chi
            big_g = self.gamma * r * dy_g
            psi = (big_g * big_y)[valid].sum(0) / m
            psi = self._average(self.gradients, self.gradient_weight, group, psi, valid)
            dx = (big_g - np.where(valid[:, None], big_y * psi, 0)) / chi
            dgamma = (dy_g * r * big_y)[valid].sum(0)
            y = self.gamma * r * big_y + self.beta
            results.append((y, dx, dgamma, dy_g[valid].sum(0), chi2))
        y, dx, dgamma, dbeta, chi2 = zip(*results)
        self.moving_variance = self.decay(self.moving_variance, chi2, positions)
        self.steps += 1
        return Step(positions.join(y), positions.join(dx), sum(dgamma), sum(dbeta))


def centralize(kernel, by_channel=(-1,)):
    """W less its mean over everything but the axes of the output channel."""
    keep = {axis % kernel.ndim for axis in by_channel}
    others = tuple(axis for axis in range(kernel.ndim) if axis not in keep)
    return kernel - kernel.mean(others, keepdims=True)


class Convolution:
    """A convolution (channels last) as patches times a kernel matrix, with its gradients.

    Args:
        kernel_size: () for a dense layer.
        groups: of input and output channels; the channels of the input for a depthwise one.
    """

    def __init__(self, kernel_size=(), strides=1, padding="valid", dilation=1, groups=1):
        self.kernel_size, self.padding, self.groups = tuple(kernel_size), padding, groups
        rank = len(self.kernel_size)
        self.strides = np.broadcast_to(strides, rank)
        self.dilation = np.broadcast_to(dilation, rank)

    def _index(self, shape):
        """For each space axis: (indices [out, kernel] into the padded input, (before, after))."""
        result = []
        for n, k, s, d in zip(shape, self.kernel_size, self.strides, self.dilation):
            extent = (k - 1) * d + 1
            if self.padding == "same":
                out = -(-n // s)
                total = max((out - 1) * s + extent - n, 0)
            else:
                out, total = (n - extent) // s + 1, 0
            index = np.arange(out)[:, None] * s + np.arange(k)[None] * d
            result.append((index, (total // 2, total - total // 2)))
        return result

    def _gather(self, space):
        """The index that makes [N, out..., kernel..., C] of the padded input."""
        rank = len(space)
        index = [slice(None)]
        for i, (at, _) in enumerate(space):
            shape = [1] * (2 * rank)
            shape[i], shape[rank + i] = at.shape
            index.append(at.reshape(shape))
        return tuple(index)

    def patches(self, x):
        """[N, out..., K, C_in]."""
        x = np.asarray(x, np.float64)
        rank = len(self.kernel_size)
        if rank == 0:
            return x[..., None, :]
        space = self._index(x.shape[1 : 1 + rank])
        padded = np.pad(x, [(0, 0), *(pad for _, pad in space), (0, 0)])
        p = padded[self._gather(space)]
        return p.reshape(*p.shape[: 1 + rank], -1, x.shape[-1])

    def _matrix(self, kernel):
        """The kernel as [groups, K, C_in/groups, C_out/groups]."""
        size = int(np.prod(self.kernel_size, dtype=int))
        kernel = np.asarray(kernel, np.float64).reshape(size, -1, kernel.shape[-1])
        k, c_in, c_out = kernel.shape
        return kernel.reshape(k, c_in, self.groups, c_out // self.groups).transpose(2, 0, 1, 3)

    def _grouped(self, p):
        return p.reshape(*p.shape[:-1], self.groups, -1)

    def __call__(self, x, kernel):
        z = np.einsum("...kgi,gkio->...go", self._grouped(self.patches(x)), self._matrix(kernel))
        return z.reshape(*z.shape[:-2], -1)

    def kernel_gradient(self, x, dz, kernel_shape):
        """Σ over positions of patch × dz, of the shape of the kernel."""
        p = self._grouped(self.patches(x))
        p = p.reshape(-1, *p.shape[-3:])
        dz = dz.reshape(len(p), self.groups, -1)
        return np.einsum("mkgi,mgo->kigo", p, dz).reshape(kernel_shape)

    def input_gradient(self, x, dz, kernel):
        dz = dz.reshape(*dz.shape[:-1], self.groups, -1)
        dp = np.einsum("...go,gkio->...kgi", dz, self._matrix(kernel))
        dp = dp.reshape(*dp.shape[:-2], -1)
        rank = len(self.kernel_size)
        if rank == 0:
            return dp[..., 0, :]
        space = self._index(x.shape[1 : 1 + rank])
        padded = np.zeros(np.pad(x, [(0, 0), *(pad for _, pad in space), (0, 0)]).shape)
        index = self._gather(space)
        out = dp.shape[1 : 1 + rank]
        dp = dp.reshape(x.shape[0], *out, *self.kernel_size, x.shape[-1])
        for n in range(x.shape[0]):
            np.add.at(padded[n], index[1:], dp[n])
        crop = [slice(None)]
        for axis, (_, (before, _)) in enumerate(space):
            crop.append(slice(before, before + x.shape[1 + axis]))
        return padded[tuple(crop)]


class CrossIterationBatchNormalization(Reference):
    """Yao et al. (2020), equations 5-12, with the past kernels that the paper keeps.

    The last axis of a kernel is that of the output channels: a depthwise kernel [..., C, q] comes
    in as [..., 1, C·q].

    The history of a group is a list of (μ, ν, ∂μ/∂θ, ∂ν/∂θ, θ), newest last; derivatives are of
    the shape of the kernel, the slice of output channel j that of μ_j and ν_j.

    gradient="window" is not the paper's: the backward pass of BN, with the window's moments. Nor is
    sampled_positions: ∂ν/∂θ is estimated from some positions, see `_derivative_of_samples`.
    """

    def __init__(
        self,
        convolution,
        *args,
        window,
        burn_in_steps=0,
        compensate=True,
        gradient="current",
        sampled_positions=None,
        steps=0,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.gradient, self.sampled_positions = gradient, sampled_positions
        self.convolution, self.window, self.burn_in_steps = convolution, window, burn_in_steps
        self.compensate, self.steps = compensate, steps
        self.history = [[] for _ in range(self.groups)]

    def _past(self, group, kernel):
        values = []
        for mean, square, dmean, dsquare, old in self.history[group]:
            if self.compensate:
                axes = tuple(range(kernel.ndim - 1))
                mean = mean + np.sum(dmean * (kernel - old), axes)
                square = square + np.sum(dsquare * (kernel - old), axes)
            values.append((mean, square))
        return values

    def _remember(self, group, h, z, valid, mean, square, kernel):
        weight = valid.reshape(z.shape[:-1])[..., None] / valid.sum()
        derivative = self.convolution.kernel_gradient
        dmean = derivative(h, np.broadcast_to(weight, z.shape), kernel.shape)
        dsquare = derivative(h, 2 * z * weight, kernel.shape)
        if self.sampled_positions is not None:
            dsquare = self._derivative_of_samples(h, z, valid, mean, square, dmean)
        self.history[group].append((mean, square, dmean, dsquare, kernel.copy()))
        del self.history[group][: -(self.window - 1)]

    def _derivative_of_samples(self, h, z, valid, mean, square, dmean):
        """2·Σ ẑ_s·(patch_s − P)·σ²/E + 2·μ·P over S positions, ẑ = z − μ, E = (Σ ẑ_s² + S·σ²)/2.

        Of all positions that is ∂ν/∂θ. The valid positions are in S parts of about one size; of
        each part one is taken, at a share of it that is a fraction of 2^16.
        """
        numbers, taken = np.flatnonzero(valid), np.zeros(len(valid))
        count, samples = len(numbers), self.sampled_positions
        for part in range(samples):
            first, end = part * count // samples, (part + 1) * count // samples
            fraction = (40_503 * self.steps + 27_145 * part) % 2**16
            taken[numbers[first + (end - first) * fraction // 2**16]] += 1
        centred = (z - mean) * taken.reshape(z.shape[:-1])[..., None]
        variance = square - mean**2
        sampled = np.sum(centred * (z - mean), tuple(range(z.ndim - 1)))
        share = 2 * variance / ((sampled + samples * variance) / 2)
        of_patches = self.convolution.kernel_gradient(h, centred, dmean.shape)
        of_mean = np.sum(centred, tuple(range(z.ndim - 1))) * dmean
        return share * (of_patches - of_mean) + 2 * mean * dmean

    def step(self, h, kernel, dy, mask=None):
        """Also returns extra["dkernel"]; `mask` is that of the outputs of the convolution."""
        h, kernel = np.asarray(h, np.float64), np.asarray(kernel, np.float64)
        z = self.convolution(h, kernel)
        positions = Positions(z, -1, self.groups, mask)
        results = []
        for group, (h_g, z_g, dy_g, valid) in enumerate(
            zip(np.split(h, self.groups), positions.split(z), positions.split(dy), positions.valid)
        ):
            m = max(valid.sum(), 1)
            mean, square = z_g[valid].sum(0) / m, (z_g[valid] ** 2).sum(0) / m
            past = self._past(group, kernel)
            k = 1 + len(past)
            mean_bar = np.mean([mean] + [p[0] for p in past], 0)
            square_bar = np.mean([np.maximum(p[1], p[0] ** 2) for p in [(mean, square), *past]], 0)
            variance_bar = square_bar - mean_bar**2
            sigma = np.sqrt(variance_bar + self.epsilon)
            normalized = (z_g - mean_bar) / sigma
            dnormalized = self.gamma * dy_g
            inside = np.where(valid[:, None], dnormalized, 0)
            dvariance = (inside * normalized).sum(0) * -0.5 / sigma**2
            dmean_bar = -inside.sum(0) / sigma - 2 * mean_bar * dvariance
            through = (dmean_bar + 2 * z_g * dvariance) / (k * m)
            if self.gradient == "window":
                g, psi = inside.sum(0) / m, (inside * normalized).sum(0) / m
                through = -(g + normalized * psi) / sigma
            dz = dnormalized / sigma + np.where(valid[:, None], through, 0)
            if valid.any() and self.steps >= self.burn_in_steps and self.window > 1:
                shaped = z_g.reshape(h_g.shape[0], *z.shape[1:])
                self._remember(group, h_g, shaped, valid, mean, square, kernel)
            dgamma = (dy_g * normalized)[valid].sum(0)
            y = self.gamma * normalized + self.beta
            results.append((y, dz, dgamma, dy_g[valid].sum(0), mean_bar, variance_bar))
        y, dz, dgamma, dbeta, means, variances = zip(*results)
        self.moving_mean = self.decay(self.moving_mean, means, positions)
        self.moving_variance = self.decay(self.moving_variance, variances, positions)
        self.steps += 1
        dz = positions.join(dz)
        dx = self.convolution.input_gradient(h, dz, kernel)
        dkernel = self.convolution.kernel_gradient(h, dz, kernel.shape)
        return Step(positions.join(y), dx, sum(dgamma), sum(dbeta), {"dkernel": dkernel})


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softplus(x):
    return np.log1p(np.exp(x))


class BatchKalmanNormalization(Reference):
    """Wang et al. (2018), Algorithm 1: one layer; `transition` is None in the first of a chain.

    `forward` takes and returns the estimates of all groups, a list of (μ̂, Σ̂); `backward` takes
    their gradients. `gain` and `noise` are the trainable scalars: q = sigmoid(gain),
    ρ = softplus(noise).
    """

    def __init__(self, *args, transition=None, gain=None, covariance="diagonal", **kwargs):
        super().__init__(*args, **kwargs)
        self.transition = None if transition is None else np.array(transition, np.float64)
        self.gain, self.full = gain, covariance == "full"

    def forward(self, x, previous=None, noise=None, mask=None):
        self.positions = Positions(x, self.axis, self.groups, mask)
        self.noise, self.tape, y, states = noise, [], [], []
        for group, (x_g, valid) in enumerate(zip(self.positions.split(x), self.positions.valid)):
            rows = x_g[valid]
            mean = rows.mean(0)
            centred = rows - mean
            s = centred.T @ centred / len(rows) if self.full else np.mean(centred**2, 0)
            if previous is None:
                estimate, spread, between = mean, s, None
            else:
                estimate, spread, between = self._combine(mean, s, *previous[group])
            sigma = np.sqrt((np.diag(spread) if self.full else spread) + self.epsilon)
            normalized = (x_g - estimate) / sigma
            y.append(self.gamma * normalized + self.beta)
            states.append((estimate, spread))
            self.tape.append((x_g, valid, mean, s, normalized, sigma, between))
        self.moving_mean = self.decay(self.moving_mean, [s[0] for s in states], self.positions)
        diagonals = [np.diag(s[1]) if self.full else s[1] for s in states]
        self.moving_variance = self.decay(self.moving_variance, diagonals, self.positions)
        return self.positions.join(y), states

    def _combine(self, mean, s, old_mean, old_spread):
        a, q, rho = self.transition, sigmoid(self.gain), softplus(self.noise)
        predicted = a @ old_mean
        if self.full:
            predicted_spread = a @ old_spread @ a.T + rho * np.eye(len(mean))
        else:
            predicted_spread = (a * a) @ old_spread + rho
        error = mean - predicted
        outer = np.outer(error, error) if self.full else error**2
        estimate = (1 - q) * predicted + q * mean
        spread = (1 - q) * predicted_spread + q * s + (1 - q) * q * outer
        return estimate, spread, (old_mean, old_spread, predicted_spread, error, outer)

    def backward(self, dy, dstates=None):
        """(Step, gradients of the states taken); dstates those of the states handed on.

        The Step's extra has dtransition, dgain, dnoise.
        """
        channels = len(self.gamma)
        parts, dprevious = [], []
        extra = {"dtransition": 0.0, "dgain": 0.0, "dnoise": 0.0}
        for group, dy_g in enumerate(self.positions.split(dy)):
            x, valid, mean, s, normalized, sigma, between = self.tape[group]
            dnormalized = self.gamma * dy_g
            inside = dnormalized[valid]
            destimate = -inside.sum(0) / sigma
            dspread = (inside * normalized[valid]).sum(0) * -0.5 / sigma**2
            dspread = np.diag(dspread) if self.full else dspread
            if dstates is not None:
                destimate = destimate + dstates[group][0]
                dspread = dspread + dstates[group][1]
            if between is None:
                dmean, ds = destimate, dspread
            else:
                dmean, ds = self._between(destimate, dspread, s, between, extra, dprevious)
            m = valid.sum()
            if self.full:
                through = dmean / m + (x - mean) @ (ds + ds.T) / m
            else:
                through = dmean / m + 2 * (x - mean) * ds / m
            dx = dnormalized / sigma + np.where(valid[:, None], through, 0)
            parts.append((dx, (dy_g * normalized)[valid].sum(0), dy_g[valid].sum(0)))
        dx, dgamma, dbeta = zip(*parts)
        assert dgamma[0].shape == (channels,)
        return Step(None, self.positions.join(dx), sum(dgamma), sum(dbeta), extra), dprevious

    def _between(self, destimate, dspread, s, between, extra, dprevious):
        """From the gradients of (μ̂, Σ̂) to those of (x̄, S); adds to `extra` and `dprevious`."""
        old_mean, old_spread, predicted_spread, error, outer = between
        a, q = self.transition, sigmoid(self.gain)
        p = 1 - q
        derror = p * q * (dspread + dspread.T) @ error if self.full else 2 * p * q * dspread * error
        dq = destimate @ error + np.sum(dspread * (s - predicted_spread + (1 - 2 * q) * outer))
        dpredicted, dpredicted_spread = p * destimate - derror, p * dspread
        if self.full:
            da = (dpredicted_spread + dpredicted_spread.T) @ a @ old_spread
            dold_spread = a.T @ dpredicted_spread @ a
            drho = np.trace(dpredicted_spread)
        else:
            da = 2 * a * np.outer(dpredicted_spread, old_spread)
            dold_spread = (a * a).T @ dpredicted_spread
            drho = dpredicted_spread.sum()
        extra["dtransition"] = extra["dtransition"] + da + np.outer(dpredicted, old_mean)
        extra["dgain"] += dq * q * p
        extra["dnoise"] += drho * sigmoid(self.noise)
        dprevious.append((a.T @ dpredicted, dold_spread))
        return q * destimate + derror, q * dspread


def standardize(kernel, by_channel=(-1,)):
    """(W − mean W)/(std W + 1e-5) over everything but the axes of the output channel."""
    centred = centralize(kernel, by_channel)
    keep = {axis % kernel.ndim for axis in by_channel}
    others = tuple(axis for axis in range(kernel.ndim) if axis not in keep)
    return centred / (np.sqrt(np.mean(centred**2, others, keepdims=True)) + 1e-5)


class OnlineNormalization(Reference):
    """Chiley et al. (2019), one example after the other, as DESIGN and the official code have it.

    Each group is a stream of its own: `means`, `variances` [G, C] are its μ and σ², whose means
    over groups are the moving values; `u` and `w` [G, C] are the sums of the backward pass.
    """

    def __init__(
        self, *args, gradient_momentum, compensation, clamp, means, variances, u, w, **kwargs
    ):
        super().__init__(*args, **kwargs)
        self.backward_momentum = gradient_momentum
        self.compensation, self.clamp = compensation, clamp
        self.means, self.variances, self.u, self.w = (
            np.array(v, np.float64) for v in (means, variances, u, w)
        )

    def step(self, x, dy, mask=None):
        x, dy = (np.moveaxis(np.asarray(v, np.float64), self.axis, -1) for v in (x, dy))
        mask = np.ones(x.shape[:-1], bool) if mask is None else np.asarray(mask)
        y, dx = np.zeros_like(x), np.zeros_like(x)
        dgamma, dbeta = np.zeros_like(self.gamma), np.zeros_like(self.beta)
        for group, examples in enumerate(np.split(np.arange(len(x)), self.groups)):
            normalized, sigmas = [], []
            for i in examples:
                mean, variance = self.means[group], self.variances[group]
                sigmas.append(np.sqrt(variance + self.epsilon))
                normalized.append((x[i] - mean) / sigmas[-1])
                rows = x[i][mask[i]]
                if len(rows):
                    a = self.momentum
                    own, spread = rows.mean(0), rows.var(0)
                    self.variances[group] = (
                        a * variance + (1 - a) * spread + a * (1 - a) * (own - mean) ** 2
                    )
                    self.means[group] = a * mean + (1 - a) * own
            for i, own_y, sigma in zip(examples, normalized, sigmas):
                y[i], d = self._finish(self.gamma * own_y + self.beta, dy[i], mask[i])
                valid, leak = mask[i], 1 - self.backward_momentum
                dgamma += (d * own_y)[valid].sum(0)
                dbeta += d[valid].sum(0)
                direct = self.gamma * d
                if not valid.any():
                    dx[i] = direct / sigma
                    continue
                u, w = self.u[group].copy(), self.w[group].copy()
                g = direct - leak * w * own_y
                self.w[group] = w + (g * own_y)[valid].mean(0)
                h = g / sigma - leak * u
                self.u[group] = u + h[valid].mean(0)
                dx[i] = np.where(valid[..., None], h, direct / sigma)
        self.moving_mean, self.moving_variance = self.means.mean(0), self.variances.mean(0)
        return Step(np.moveaxis(y, -1, self.axis), np.moveaxis(dx, -1, self.axis), dgamma, dbeta)

    def _finish(self, y, dy, valid):
        """The output of an example, and ∂L/∂ of what was clamped or scaled."""
        if self.compensation == "clamp":
            return np.clip(y, -self.clamp, self.clamp), dy * (np.abs(y) <= self.clamp)
        root = np.sqrt((y[valid] ** 2).mean() + self.epsilon if valid.any() else self.epsilon)
        inside = np.where(valid[..., None], y, 0)
        mean = (inside * dy)[valid].mean() if valid.any() else 0.0
        return y / root, dy / root - inside * mean / root**3

    def infer(self, x, mask=None):
        y = np.moveaxis(super().infer(x), self.axis, -1)
        valid = np.ones(y.shape[:-1], bool) if mask is None else mask
        done = [self._finish(one, one, rows)[0] for one, rows in zip(y, valid)]
        return np.moveaxis(np.array(done), -1, self.axis)


class Differentiated(Reference):
    """A method whose gradients are those of its formula, by complex steps: to the last digit.

    A subclass has its own parameters in `names`, and `normalize(x, mask, values)`, which returns y
    and the batch's moments of each group for x [n, ..., C] and the values of γ, β and `names`.
    """

    names = ()

    def __init__(self, *args, **kwargs):
        own = {name: np.array(kwargs.pop(name), np.float64) for name in self.names}
        super().__init__(*args, **kwargs)
        self.own = own

    def step(self, x, dy, mask=None):
        x, dy = (np.moveaxis(np.asarray(v, np.float64), self.axis, -1) for v in (x, dy))
        mask = np.ones(x.shape[:-1], bool) if mask is None else np.asarray(mask)
        values = {"gamma": self.gamma, "beta": self.beta, **self.own}
        y, moments = self.normalize(x, mask, values)
        valid = mask[..., None]

        def loss(x, values):
            return np.sum(np.where(valid, self.normalize(x, mask, values)[0] * dy, 0))

        dx = complex_gradient(lambda x: loss(x, values), x)
        # What is masked is normalized by the statistics of the rest, which it has no effect on.
        slope = self.normalize(np.where(valid, x, x + 1), mask, values)[0] - y
        dx = np.where(valid, dx, slope * dy)
        of_values = {
            name: complex_gradient(lambda v, name=name: loss(x, {**values, name: v}), value)
            for name, value in values.items()
        }
        seen = [part.any() for part in np.split(mask, self.groups)]
        for name, new in zip(("moving_mean", "moving_variance"), moments):
            old = getattr(self, name)
            decayed = self.momentum * old + (1 - self.momentum) * new
            setattr(self, name, np.where(np.array(seen)[:, None], decayed, old).mean(0))
        dgamma, dbeta = of_values.pop("gamma"), of_values.pop("beta")
        back = [np.moveaxis(v, -1, self.axis) for v in (y, dx)]
        return Step(*back, dgamma, dbeta, of_values)

    def infer(self, x, mask=None):
        x = np.moveaxis(np.asarray(x, np.float64), self.axis, -1)
        mask = np.ones(x.shape[:-1], bool) if mask is None else np.asarray(mask)
        values = {"gamma": self.gamma, "beta": self.beta, **self.own}
        moving = (self.moving_mean[None], self.moving_variance[None])
        return np.moveaxis(self.normalize(x, mask, values, moving)[0], -1, self.axis)


def complex_gradient(function, value, eps=1e-30):
    """The gradient of a real function that takes complex numbers: Im f(v + iε)/ε."""
    gradient = np.zeros(value.shape)
    for index in np.ndindex(value.shape):
        moved = value.astype(complex)
        moved[index] += eps * 1j
        gradient[index] = function(moved).imag / eps
    return gradient


def example_moments(x, mask, bessel=0):
    """Counts [n, 1], means and variances [n, C] of the valid positions of each example."""
    rows, valid = x.reshape(len(x), -1, x.shape[-1]), mask.reshape(len(x), -1, 1)
    count = valid.sum(1)
    mean = np.where(valid, rows, 0).sum(1) / np.maximum(count, 1)
    squares = np.where(valid, (rows - mean[:, None]) ** 2, 0).sum(1)
    return count, mean, squares / np.maximum(count - bessel, 1)


def group_moments(count, mean, variance, groups):
    """Those of each group, from its examples'."""
    means, variances = [], []
    for n, m, v in zip(*(np.split(a, groups) for a in (count, mean, variance))):
        share = n / max(n.sum(), 1)
        means.append((share * m).sum(0))
        variances.append((share * (v + (m - means[-1]) ** 2)).sum(0))
    return np.array(means), np.array(variances)


def spread(values, x):
    """[n, C] or [G, C] to the rank of x, for each of its examples."""
    values = np.repeat(values, len(x) // len(values), 0)
    return values.reshape(len(x), *[1] * (x.ndim - 2), values.shape[-1])


class SwitchableNormalization(Differentiated):
    """Luo et al. (2018), with the official code's variances of instances."""

    names = ("mean_weights", "variance_weights")

    def normalize(self, x, mask, values, moving=None):
        count, mean, variance = example_moments(x, mask, bessel=1)
        batch = group_moments(count, mean, variance, self.groups)
        layer_mean = mean.mean(-1, keepdims=True)
        layer_variance = (variance + mean**2).mean(-1, keepdims=True) - layer_mean**2
        means = (mean, layer_mean, (moving or batch)[0])
        variances = (variance, layer_variance, (moving or batch)[1])
        mixed = []
        for parts, name in ((means, "mean_weights"), (variances, "variance_weights")):
            weights = np.exp(values[name]) / np.exp(values[name]).sum()
            mixed.append(sum(w * spread(part, x) for w, part in zip(weights, parts)))
        y = (x - mixed[0]) / np.sqrt(mixed[1] + self.epsilon)
        return values["gamma"] * y + values["beta"], batch


class BatchInstanceNormalization(Differentiated):
    """Nam & Kim (2018)."""

    names = ("gate",)

    def normalize(self, x, mask, values, moving=None):
        count, mean, variance = example_moments(x, mask)
        batch = group_moments(count, mean, variance, self.groups)
        of_batch, of_instance = (
            (x - spread(m, x)) / np.sqrt(spread(v, x) + self.epsilon)
            for m, v in (moving or batch, (mean, variance))
        )
        y = values["gate"] * of_batch + (1 - values["gate"]) * of_instance
        return values["gamma"] * y + values["beta"], batch


class EvalNormalization(BatchNormalization):
    """Singh & Shrivastava (2019); `shares` are α and β, each [G, 1], or one number for both."""

    def __init__(self, *args, shares, **kwargs):
        super().__init__(*args, **kwargs)
        self.shares = shares

    def step(self, x, dy, mask=None):
        before = self.moving_mean, self.moving_variance
        step = super().step(x, dy, mask)
        if not np.isscalar(self.shares):
            last = np.moveaxis(np.asarray(x, np.float64), self.axis, -1)
            mask = np.ones(last.shape[:-1], bool) if mask is None else np.asarray(mask)
            parts = zip(np.split(last, self.groups), np.split(mask, self.groups))
            new = [
                self._towards(x_g, valid, *before, *(share[group] for share in self.shares))
                for group, (x_g, valid) in enumerate(parts)
            ]
            self.shares = [np.array(share) for share in zip(*new)]
        return step

    def _towards(self, x, valid, mean, variance, *shares):
        """One damped Gauss-Newton step for each of α and β, of residuals at every position."""
        if not valid.any():
            return shares
        batch_mean, batch_variance = x[valid].mean(0), x[valid].var(0)
        wanted = (x - batch_mean) / np.sqrt(batch_variance + self.epsilon)

        def residuals(alpha, beta):
            return (self._mix(x, valid, mean, variance, alpha, beta) - wanted)[valid].ravel()

        def slope(which):
            moved = [share + (which == i) * 1e-30j for i, share in enumerate(shares)]
            return residuals(*moved).imag / 1e-30

        now, new = residuals(*shares), []
        for which, share in enumerate(shares):
            gradient, curvature = slope(which) @ now, slope(which) @ slope(which)
            moved = share - (1 - self.momentum) * gradient / curvature if curvature else share
            new.append(np.clip(moved, 0, 1))
        return new

    def _mix(self, x, valid, mean, variance, alpha, beta):
        _, own_mean, own_variance = (spread(v, x) for v in example_moments(x, valid))
        mixed = alpha * own_mean + (1 - alpha) * mean
        between = alpha * (1 - alpha) * (own_mean - mean) ** 2
        return (x - mixed) / np.sqrt(
            beta * own_variance + (1 - beta) * variance + between + self.epsilon
        )

    def infer(self, x, mask=None):
        x = np.moveaxis(np.asarray(x, np.float64), self.axis, -1)
        mask = np.ones(x.shape[:-1], bool) if mask is None else np.asarray(mask)
        shares = self.shares
        alpha, beta = (shares,) * 2 if np.isscalar(shares) else (np.mean(s) for s in shares)
        y = self._mix(x, mask, self.moving_mean, self.moving_variance, alpha, beta)
        return np.moveaxis(self.gamma * y + self.beta, -1, self.axis)
