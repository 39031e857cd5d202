"""The end of the page of results: which norm for which task, in words."""

TEXT = """## Which norm should I use?

Count the images that share statistics: those of one device, or of one virtual replica. Then:

| images | first choice | else |
| --- | --- | --- |
| 16 and more | bn | brn where images are not independent |
| 4 to 8 | bn; mabn where its loss shows | cbn; syncbn on fast links |
| 2 | mabn | brn, cbn; syncbn on fast links |
| 1 | mabn | brn, cbn; gn if serving may cost more. Not bn, not bkn |

**By task.** *Classification from scratch:* the table above. *Detection and segmentation* with one
to eight images a device: mabn in long schedules; brn or cbn where a pretrained bn network is
converted, because `tfnorm.convert` leaves their answers what they are (mabn centralizes kernels and
has to be trained first). *Medical volumes, video*, one volume a device: mabn or brn; cbn keeps
window − 1 kernels' worth of state, much for 3-D kernels. *Metric learning, and whatever else
samples by class:* brn, with statistics of as many images as fit; look at the chapter on batches
that are not independent. *Very short runs* (hundreds of steps): brn or gn, because mabn and cbn
need a burn-in first.

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
| cbn | 2 C + (window − 1) · G · (kernel + 2 C) | a kernel gradient more after the burn-in | none |
| bkn | 2 C, and a transition of at most C × C' | small matrices between layers | none |
| gn, ln, in | none | more passes over the activations, at inference too | none |

G is the number of virtual replicas, 1 outside of studies. `make bench` measures all of this.

**If unsure**, watch: `tfnorm.training.StatisticsMonitor` measures while training how noisy the
batch statistics are, forward and backward, and says what to try.
"""
