"""StableHLO text: without what only TensorFlow knows, and as a program that repeats another."""

import re

_COPY = re.compile(r'= "?mhlo\.copy"?[ (](%[\w#]+)\)? : (?:\(.*\) -> )?(tensor<.*>)')
_ATTRIBUTES = re.compile(r" ?\{mhlo\.[^{}]*(\{[^{}]*\}[^{}]*)*\}")
_MAIN = re.compile(r"func\.func (?:public )?@main\((.*?)\) -> \(?(.*?)\)? \{$", re.MULTILINE)
_MODULE = re.compile(r"^module @\S+ attributes \{.*\} \{$", re.MULTILINE)


def portable(text: str) -> str:
    """The module without source locations, aliases, layouts and operations of TensorFlow's own.

    Raises:
        ValueError: something of TensorFlow's dialect is left.
    """
    lines = [line for line in text.splitlines() if not line.startswith("#loc")]
    text = _without_locations("\n".join(lines))
    text = _MODULE.sub("module @main {", text, count=1)
    # Copies of what stays as it is: a compiler makes its own where it wants them.
    text = _COPY.sub(r"= stablehlo.reshape \1 : (\2) -> \2", text)
    text = _ATTRIBUTES.sub("", text)
    left = re.search(r".*mhlo\..*", text)
    if left:
        raise ValueError(f"not StableHLO: {left[0].strip()[:200]}")
    return text + "\n"


def repeated(text: str, times: int) -> str:
    """The module whose main function calls that of `text` so often, each time with its arguments.

    A device then does many steps for one call from outside. No compiler may take a step for the
    one before: through a barrier its arguments depend on the loop's counter.
    """
    main = _MAIN.search(text)
    taken = re.findall(r"%arg\d+: (tensor<[^>]*>)", main[1])
    given = re.findall(r"tensor<[^>]*>", main[2])
    arguments = [f"%arg{i}" for i in range(len(taken))]
    carried = [f"%carried{i}" for i in range(len(given))]
    names, types = ", ".join(arguments), ", ".join(taken)
    state = "".join(f", {name} = %first#{i}" for i, name in enumerate(carried))
    of_step = [f"%step#{i}" for i in range(len(given))]
    counted = ", ".join(["tensor<i32>", *given])
    barred = ", ".join(f"%barred#{i}" for i in range(len(taken)))
    lines = [
        f"  func.func public @main({main[1]}) -> ({main[2]}) {{",
        "    %one = stablehlo.constant dense<1> : tensor<i32>",
        f"    %times = stablehlo.constant dense<{times}> : tensor<i32>",
        f"    %first:{len(given)} = func.call @once({names}) : ({types}) -> ({main[2]})",
        f"    %end:{len(given) + 1} = stablehlo.while(%counter = %one{state}) : {counted}",
        "    cond {",
        "      %less = stablehlo.compare LT, %counter, %times : "
        "(tensor<i32>, tensor<i32>) -> tensor<i1>",
        "      stablehlo.return %less : tensor<i1>",
        "    } do {",
        f"      %barred:{len(taken) + 1} = stablehlo.optimization_barrier {names}, %counter : "
        f"{types}, tensor<i32>",
        f"      %step:{len(given)} = func.call @once({barred}) : ({types}) -> ({main[2]})",
        "      %next = stablehlo.add %counter, %one : tensor<i32>",
        f"      stablehlo.return {', '.join(['%next', *of_step])} : {counted}",
        "    }",
        f"    return {', '.join(f'%end#{i + 1}' for i in range(len(given)))} : {main[2]}",
        "  }",
    ]
    once = f"func.func private @once({main[1]}) -> ({main[2]}) {{"
    text = text[: main.start()] + once + text[main.end() :]
    return text.rstrip().removesuffix("}") + "\n".join([*lines, "}", ""])


def _without_locations(text: str) -> str:
    """Without `loc(...)`, whose parentheses nest."""
    kept, start = [], 0
    while (found := text.find(" loc(", start)) >= 0:
        kept.append(text[start:found])
        depth, start = 1, found + len(" loc(")
        while depth:
            depth += {"(": 1, ")": -1}.get(text[start], 0)
            start += 1
    return "".join([*kept, text[start:]])
