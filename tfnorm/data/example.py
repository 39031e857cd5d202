"""What one example of a data set is, from the file to the model.

An Example is a dictionary of tensors. Of the entries below it has those that its data set has.
A batch of examples has one more axis in front.

| entry | of one example | meaning |
|---|---|---|
| image | [] string, [h, w, c] uint8 or float32 | encoded, decoded or transformed; pixels 0 to 255 |
| label | [] int32 | the class of the image |
| mask | [] string, [h, w] uint8 | values as in the file, of which `MaskClasses` says the classes |
| | [h, w] int32 | transformed: the class of each pixel, `IGNORED` where there is none |
| instances | [] string or [h, w] int32 | i + 1 where object i is seen, 0 elsewhere |
| boxes | [n, 4] float32 | objects' top, left, bottom, right in pixels of `image` |
| classes | [n] int32 | objects' classes, `ABSENT` in rows that hold no object |
| crowd | [n] bool | a box around many objects of a class, as COCO's `is_crowd` |
| difficult | [n] bool | an object that VOC's evaluation leaves out, `is_difficult` |
| areas | [n] float32 | pixels that objects cover in the file, as COCO's `area` says of masks |
| segmentations | [n] string | masks that may overlap, in pixels of the file: `run_lengths` |
| seed | [2] int32 | transformed: what a network draws of the example follows from it |

In an evaluation, where the last batch is filled up, there are besides

| entry | of one example | meaning |
|---|---|---|
| index | [] int64 | the number of the example |
| weight | [] float32 | 1, or 0 for what fills up |

Pixel (i, j) is the square from (i, j) to (i + 1, j + 1): the box of a whole image is
(0, 0, h, w). n is the same for all examples, the largest number of objects: rows without an object
have class `ABSENT` and the box (0, 0, 0, 0). A row keeps its place through all transforms, and
with it the number of its instance.
"""

import tensorflow as tf

Example = dict[str, tf.Tensor]
"""What is known of an image, or of a batch of them, by name."""

# The value in a mask of pixels that count in no loss and no metric.
IGNORED = -1
# The class of a row of `boxes` that holds no object.
ABSENT = -1

# The entries with one row an object.
OBJECT_ENTRIES = ("boxes", "classes", "crowd", "difficult", "areas")


def left_out(example: Example) -> tf.Tensor | None:
    """[..., n] bool, the objects that are neither to be found nor missed; None if there are none.

    They are the boxes around crowds of COCO and the difficult objects of VOC.
    """
    kinds = [example[kind] for kind in ("crowd", "difficult") if kind in example]
    return None if not kinds else tf.reduce_any(tf.stack(kinds), 0)
