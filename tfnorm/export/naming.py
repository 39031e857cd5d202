"""Names of what an export takes and returns: each its own, and such that TensorFlow keeps them."""

import itertools
import keyword
import re
import unicodedata

import keras

from tfnorm.graph import function_of


def input_names(model: keras.Model) -> list[str]:
    """Names of the inputs, in flat order: those of their layers, where TensorFlow keeps these.

    TensorFlow makes Python parameters of the inputs of a signature: it takes capitals to lower
    case and refuses other letters, spaces and words of the language. Such names are made valid
    here, and unique also as parameters, where "a-b" and "a_b" are one.
    """
    given = [x._keras_history.operation.name for x in function_of(model).inputs]
    names = [_valid(name) for name in given]
    wanted = {*map(_as_parameter, names)}
    taken: set[str] = set()
    # Who has a valid name from the start keeps it.
    for i in sorted(range(len(given)), key=lambda i: given[i] != names[i]):
        if _as_parameter(names[i]) in taken:
            names[i] = _first_free(names[i], 1, taken | wanted)
        taken.add(_as_parameter(names[i]))
    return names


def output_names(model: keras.Model) -> list[str]:
    """Names of the outputs, in flat order: keys of a dict, else names of the layers they are of.

    Names that several outputs would have get numbers.
    """
    function = function_of(model)
    paths = keras.tree.flatten_with_path(function.output)
    wanted = [
        "_".join(map(str, path)) if any(isinstance(key, str) for key in path) else layer_name
        for (path, _), layer_name in zip(paths, function.output_names, strict=True)
    ]
    taken = set(wanted)
    names = []
    for i, name in enumerate(wanted):
        if wanted.count(name) > 1:
            name = _first_free(name, wanted[:i].count(name), taken)
            taken.add(name)
        names.append(name)
    return names


def renamed_inputs(model: keras.Model) -> dict[str, str]:
    """The names of the export for those of the model's inputs that it cannot keep."""
    given = [x._keras_history.operation.name for x in function_of(model).inputs]
    return {old: new for old, new in zip(given, input_names(model), strict=True) if old != new}


def _valid(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name.casefold()).encode("ascii", "ignore").decode()
    plain = re.sub(r"[^a-z0-9_./-]", "_", plain)
    if not re.match(r"[a-z0-9]", plain):
        plain = f"input{plain}" if plain.startswith("_") else f"input_{plain}"
    return f"{plain}_" if keyword.iskeyword(plain) or plain == "self" else plain


def _as_parameter(name: str) -> str:
    return re.sub(r"\W", "_", name)


def _first_free(name: str, start: int, taken: set[str]) -> str:
    """The name with the first number from `start` on that makes one of it that is not taken."""
    candidates = (f"{name}_{number}" for number in itertools.count(start))
    return next(x for x in candidates if _as_parameter(x) not in taken and x not in taken)
