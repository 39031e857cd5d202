"""Height and width as they are written on the command line."""

from tfnorm.errors import UserError

_LARGEST = 2**27  # A batch of one in float32 with 4 channels then has 2 GiB.


def parse_size(text: str) -> tuple[int, int]:
    """(224, 320) from "224,320", (224, 224) from "224".

    Raises:
        UserError: It is neither, or larger than any image.
    """
    parts = text.split(",")
    if len(parts) > 2 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"--image_size={text} is not of the form H,W, such as 224,224")
    height, width = int(parts[0]), int(parts[-1])
    if height * width > _LARGEST:
        raise UserError(
            f"--image_size={text} is more than {_LARGEST:,} pixels; choose a smaller one"
        )
    return height, width
