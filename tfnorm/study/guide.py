"""The end of the page of results: which norm for which task, in words."""

import re

from tfnorm.study.figures import Figures

_TEXT = """## Which norm should I use?

Count the images that share statistics: those of one device, or of one virtual replica. Then:

| images | first choice | else |
| --- | --- | --- |
| 16 and more | bn | mabn or brn where images are not independent |
| 4 to 8 | bn; mabn where its loss shows | cbn; syncbn on fast links |
| 2 | mabn | brn, cbn; syncbn on fast links |
| 1 | mabn | brn, cbn; gn if serving may cost more. Not bn, not bkn |

**One image a device** is where most has been proposed. *Where serving must be free*, the norm has
to fold into the layer before it: mabn, brn and cbn do, whole; on (online normalization) does but
for a clip of its outputs, and its paper calls it as accurate as bn without any batch: in the 1,200
steps here it has {batch-size on 1} % on one image. *Where serving may cost* the passes over the
activations that statistics of each image take: gn_ws (group normalization of standardized kernels),
which its paper has match or surpass bn on large batches; gn alone; sn, whose paper claims it for
two images and more. A network that is trained already, with bn on two to eight images (B):
evalnorm, by `tfnorm.convert(model, "evalnorm", training_batch_size=B)`, which changes inference
alone and costs there; its paper reports 6.18 points for two. bin is for images whose style says
nothing, and claims nothing of small batches. With the statistics of one image ([the chapter on
batch sizes](#how-few-images-can-share-statistics)) gn_ws has {batch-size gn_ws 1}, evalnorm
{batch-size evalnorm 1}, mabn {batch-size mabn 1}, sn {batch-size sn 1} and brn {batch-size brn 1}
%, where bn on the whole batch has {learning-rate bn 32 0.1}; bin ({batch-size bin 1}) is below bn
({batch-size bn 1}).

**By task.** *Classification from scratch:* the table above. *Segmentation* with one to eight crops
a device: mabn. With the statistics of one crop it keeps what bn reaches with those of eight (mIoU
{segmentation mabn 1} and {segmentation bn 8} %, where bn of one crop has {segmentation bn 1}: [And
in segmentation?](#and-in-segmentation)), and so it does with two. brn is as good from two crops on,
and not with one ({segmentation brn 1}). evalnorm, which trains as bn does and estimates meanwhile
what an example is to count, wins {segmentation evalnorm 1 less segmentation bn 1} points back when
it serves, at a price there. cbn wants gradient="window" on two crops and more: with it cbn has
{segmentation cbn 8 whole gradient} % on eight crops in place of {segmentation cbn 8},
{segmentation cbn 2 whole gradient} on two in place of {segmentation cbn 2}. With one crop neither
will do: the training loss rises after the burn-in, the more the longer the window and the higher
the learning rate, because the layers before change within a window (`python -m
benchmarks.window_variance`). on has {segmentation on 1} % on one crop with the memory that the
trainer gives it in so short a run; with that of its paper it diverges. gn_ws is above gn where
serving may cost. *Detection* of few kinds of objects in short runs ([And in
detection?](#and-in-detection); seeds differ by several points): from scratch brn, with an AP of
{detection brn 1 all layers from scratch} % on the statistics of one image and
{detection brn 2 all layers from scratch} on those of two, or mabn
({detection mabn 1 all layers from scratch} and {detection mabn 2 all layers from scratch}), not bn
({detection bn 1 all layers from scratch} and {detection bn 2 all layers from scratch}). In all
layers of a pretrained network no norm that folds is safely above bn (mabn
{detection mabn 1 all layers} and {detection mabn 2 all layers}, bn {detection bn 1 all layers} and
{detection bn 2 all layers}); gn is, where serving may cost ({detection gn 1 all layers}), and in
the head on a frozen backbone too ({detection gn 1 head backbone frozen}). cbn was above bn nowhere.
Let mabn's averages begin past the peak of the learning rate (`warmup_steps`), or those of the
gradient diverge. *Instance segmentation* ([of nuclei](#and-in-instance-segmentation)): mabn is
above bn, with a mask AP of {instances mabn 1} in place of {instances bn 1} % on one image and
{instances mabn 2} in place of {instances bn 2} on two; gn is best ({instances gn 1} and
{instances gn 2}). Where a network is pretrained with bn and converted, brn and cbn begin with its
answers (`tfnorm.convert` leaves them what they are); mabn centralizes kernels and has to be trained
first. *Medical volumes, video*, one volume a device: mabn or brn; cbn keeps window − 1 kernels'
worth of state, much for 3-D kernels. *Metric learning, and whatever else samples by class:* mabn or
brn, with statistics of as many images as fit, and not bn, cbn or bkn, which learn to read the
batch; look at the chapter on batches that are not independent. *Very short runs* (hundreds of
steps): mabn or syncbn; cbn's burn-in and brn's ramps take a good part of them. *Deep chains of
convolutions on 4 to 16 images:* bkn is worth a trial, at the price of its matrices.

**By hardware.** One accelerator: the table above. Several with a fast interconnect and a network
that waits little: syncbn is the simplest that is right, two collectives a layer and step;
`python -m benchmarks.scaling` says from how many replicas on it costs more than it gives. Several
machines: mabn, brn or cbn, which communicate nothing. TPU: all of them compile; XLA sees static
shapes only. Serving: every norm but gn, gn_ws, ln, in, sn, bin and evalnorm folds into the layer
before it and costs nothing (on leaves a clip); `python -m benchmarks.inference` measures that.

**What they cost in training.**

| norm | state of a layer with C channels (float32) | extra work in a step | communication |
| --- | --- | --- | --- |
| bn | 2 C | none | none |
| syncbn | 2 C | none | 2 all-reduces a layer, of some kB |
| brn | 2 C | on C numbers only | none |
| mabn | (2 + 2 · window · G) C | on C numbers; centralizing the kernel | none |
| cbn | 2 C + (window − 1) · G · (kernel · (1 + g / C) + 2 C) | a kernel gradient more | none |
| cbn, S samples | 2 C + (window − 1) · G · ((S + 1) · kernel · g / C + (S + 2) C) | little | none |
| bkn | 2 C, and a transition of at most C × C' | small matrices between layers | none |
| on | (2 + 4 · G) C | on C numbers for each image; a clip, at inference too | none |
| evalnorm | 2 C + 2 · G | as gn at inference, moments of each image in training | none |
| sn, bin | 2 C, and 6 or C weights | as gn, at inference too | none |
| gn, ln, in | none | more passes over the activations, at inference too | none |
| gn_ws | none | the same, and standardizing the kernel in training | none |

G is the number of virtual replicas, 1 outside of studies; S are the `sampled_positions` of cbn; g a
kernel's groups, 1 but for grouped and depthwise convolutions. `make bench` measures time and memory
of layers and of whole networks: [Benchmarks](benchmarks.md).

**If unsure**, watch: `tfnorm.training.StatisticsMonitor` measures while training how noisy the
batch statistics are, forward and backward, and says what to try.
"""


def text(figures: Figures) -> str:
    """The guide, with what the runs came to; "-" where they are not made."""

    def figure(match: re.Match) -> str:
        try:
            return figures.text(" ".join(match[1].split()))
        except KeyError:
            return "-"

    return re.sub(r"\{([^}]+)\}", figure, _TEXT)
