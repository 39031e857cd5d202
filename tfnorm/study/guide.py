"""The end of the page of results: which norm for which task, in words."""

TEXT = """## Which norm should I use?

Count the images that share statistics: those of one device, or of one virtual replica. Then:

| images | first choice | else |
| --- | --- | --- |
| 16 and more | bn | mabn or brn where images are not independent |
| 4 to 8 | bn; mabn where its loss shows | cbn; syncbn on fast links |
| 2 | mabn | brn, cbn; syncbn on fast links |
| 1 | mabn | brn, cbn; gn if serving may cost more. Not bn, not bkn |

**By task.** *Classification from scratch:* the table above. *Detection and segmentation* with one
to eight images a device: mabn in long schedules; brn or cbn where a pretrained bn network is
converted, because `tfnorm.convert` leaves their answers what they are (mabn centralizes kernels and
has to be trained first). *Medical volumes, video*, one volume a device: mabn or brn; cbn keeps
window − 1 kernels' worth of state, much for 3-D kernels. *Metric learning, and whatever else
samples by class:* mabn or brn, with statistics of as many images as fit, and not bn, cbn or bkn,
which learn to read the batch; look at the chapter on batches that are not independent. *Very short
runs* (hundreds of steps): mabn or syncbn; cbn's burn-in and brn's ramps take a good part of them.
*Deep chains of convolutions on 4 to 16 images:* bkn is worth a trial, at the price of its matrices.

**By hardware.** One accelerator: the table above. Several with a fast interconnect and a network
that waits little: syncbn is the simplest that is right, two collectives a layer and step;
`python -m benchmarks.scaling` says from how many replicas on it costs more than it gives. Several
machines: mabn, brn or cbn, which communicate nothing. TPU: all of them compile; XLA sees static
shapes only. Serving: every norm but gn, ln and in folds into the layer before it and costs nothing;
`python -m benchmarks.inference` measures that.

**What they cost in training.**

| norm | state of a layer with C channels (float32) | extra work in a step | communication |
| --- | --- | --- | --- |
| bn | 2 C | none | none |
| syncbn | 2 C | none | 2 all-reduces a layer, of some kB |
| brn | 2 C | on C numbers only | none |
| mabn | (2 + 2 · window · G) C | on C numbers; centralizing the kernel | none |
| cbn | 2 C + (window − 1) · G · (kernel · (1 + g / C) + 2 C) | a kernel gradient more | none |
| bkn | 2 C, and a transition of at most C × C' | small matrices between layers | none |
| gn, ln, in | none | more passes over the activations, at inference too | none |

G is the number of virtual replicas, 1 outside of studies; g a kernel's groups, 1 but for grouped
and depthwise convolutions. `make bench` measures times and memory of layers and of whole networks:
[results/benchmarks/bench.md](../results/benchmarks/bench.md).

**If unsure**, watch: `tfnorm.training.StatisticsMonitor` measures while training how noisy the
batch statistics are, forward and backward, and says what to try.
"""
