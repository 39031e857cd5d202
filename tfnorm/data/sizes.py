"""Height and width as they are written on the command line."""

from tfnorm.errors import UserError


def parse_size(text: str) -> tuple[int, int]:
    """(224, 320) from "224,320", (224, 224) from "224".

    Raises:
        UserError: It is neither.
    """
    parts = text.split(",")
    if len(parts) > 2 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"--image_size={text} is not of the form H,W, such as 224,224")
    return int(parts[0]), int(parts[-1])
