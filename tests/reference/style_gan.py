"""StyleGAN's layers in NumPy, written from the papers: Karras et al., ICLR 2018 (progressive GAN) and CVPR 2019."""

import numpy as np

HE = 2 ** 0.5     # gain of layers with a LeakyReLU behind


def equalised_scale(fan_in, gain=HE):
    """Progressive GAN §4.1: ŵ = w · c with He's constant c = gain / √fan-in, at run time."""
    return gain / np.sqrt(fan_in)


def equalised_linear(x, weight, bias, gain=HE, learning_rate=1.0):
    """[N, I] → [N, O]; weight and bias are as stored."""
    out = np.zeros((len(x), len(weight)))
    for n in range(len(x)):
        for o in range(len(weight)):
            out[n, o] = bias[o] * learning_rate
            for i in range(x.shape[1]):
                out[n, o] += weight[o, i] * learning_rate * equalised_scale(x.shape[1], gain) * x[n, i]
    return out


def leaky(x, slope=0.2):
    return np.where(x > 0, x, slope * x)


def pixel_norm(x):
    """Progressive GAN §4.2 for vectors [N, C]: b = a / √(mean a² + 1e-8)."""
    return x / np.sqrt((x ** 2).mean(1, keepdims=True) + 1e-8)


def mapping(z, layers, learning_rate=0.01):
    """f: z → w; `layers` = [(weight, bias), …] as stored."""
    w = pixel_norm(z)
    for weight, bias in layers:
        w = leaky(equalised_linear(w, weight, bias, learning_rate=learning_rate))
    return w


def adain(x, scale, bias):
    """StyleGAN Eq. 1: y_s (x − μ(x)) / σ(x) + y_b for each feature map of [N, C, H, W]; y_s, y_b: [N, C]."""
    y = np.empty_like(x)
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            y[n, c] = scale[n, c] * (x[n, c] - x[n, c].mean()) / np.sqrt(x[n, c].var() + 1e-8) + bias[n, c]
    return y


def minibatch_deviation(x, group_size):
    """Progressive GAN §3: std over the group for each feature and location, averaged to one number; [N].

    Image n is of the group n mod (N / group_size), as in the authors' reshape.
    """
    num_groups = len(x) // group_size
    out = np.empty(len(x))
    for n in range(len(x)):
        group = x[n % num_groups::num_groups]
        out[n] = np.sqrt(group.var(0) + 1e-8).mean()
    return out


def nearest_doubled(x):
    return x.repeat(2, axis=-2).repeat(2, axis=-1)


def average_halved(x):
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def softplus(x):
    return np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0)
