"""Chat templates from a grammar: expressions whose operations make values grow, statements that loop and recurse."""

from __future__ import annotations

import random

ATOMS = ("messages", "tools", "bos_token", "messages[0].content", "messages[0]", "loop", "nothing", "self", "true",
         "none", "''", "'a'", "'😀中'", "'<|turn>'", "[]", "{}", "[1, 2]", "{'a': 1}", "0", "1", "-1", "2", "3.5",
         "1e308", "99999", "10 ** 9", "range(9)", "range(10 ** 9)", "namespace(a=1)", "dict(a=1)", "cycler('a')",
         "joiner()",
         "caller", "x", "y", "raise_exception", "strftime_now", "lipsum", "enable_thinking", "add_generation_prompt")
OPERATIONS = ("+", "-", "*", "**", "/", "//", "%", "~", "==", "<", "in", "not in", "and", "or", "is")
TESTS = ("defined", "string", "mapping", "iterable", "sequence", "odd", "none", "callable", "filter", "sameas(1)")
FILTERS = ("length", "list", "join", "join(x)", "upper", "tojson", "tojson(indent=99999)", "trim", "sort", "unique",
           "groupby('role')", "map(attribute='content')", "select", "reject('none')", "sum", "sum(start=[])",
           "batch(3)", "slice(3)", "replace('a', 'aa' * 9)", "replace('', 'abc')", "center(999999)", "indent(99999)",
           "wordwrap(1)", "format(1)", "string", "safe", "escape", "forceescape", "urlize", "xmlattr", "dictsort",
           "items", "reverse", "first", "last", "min", "max", "random", "round", "int", "float", "abs", "attr('x')",
           "attr('__class__')", "default(x)", "striptags", "title", "wordcount", "truncate(9)", "pprint",
           "filesizeformat", "urlencode", "batch(10 ** 8)", "map('upper')", "map('list')", "map('join')")
METHODS = ("upper()", "split()", "split('')", "join(x)", "join([x] * 9)", "replace('a', x)", "format(x)", "strip()",
           "ljust(10 ** 9)", "zfill(99999)", "encode()", "items()", "keys()", "get('a')", "to_bytes(10 ** 9, 'big')",
           "bit_length()", "expandtabs(10 ** 9)", "translate({97: x})", "splitlines()", "partition('a')", "count('a')",
           "append(x)", "update(x)", "pop()", "copy()", "format_map({})", "conjugate()", "hex()", "isdigit()", "next()",
           "startswith(x)", "find(x)", "maketrans('a', 'b')", "fromkeys(range(10 ** 8))", "extend(x)", "sort()",
           "index(x)", "casefold()", "swapcase()", "title()", "as_integer_ratio()", "__class__", "__init__", "mro()",
           "_x", "format.__func__", "__globals__", "gi_frame", "f_back", "cr_code")
FORMATS = ("'{:>{}}'.format(x, 10 ** 9)", "'%0999999999d' % 1", "'%*d' % (10 ** 9, 1)", "'{0.__class__}'.format(x)",
           "'{:,.999999999f}'.format(1.5)", "('%s' * 99) % ((x,) * 99)", "x[::-1]", "x[:10 ** 9]", "x[0][0][0]",
           "(x, x, x)", "[x] * 99999", "x ~ x ~ x", "x if y else x", "range(3)|map('string')|join", "{x: x}")


def expression(rng: random.Random, depth: int = 3) -> str:
    """An expression."""
    if depth == 0 or rng.random() < 0.2:
        return rng.choice(ATOMS)
    inner = expression(rng, depth - 1)
    match rng.randrange(9):
        case 0 | 1:
            return f"({inner} {rng.choice(OPERATIONS[:-1])} {expression(rng, depth - 1)})"
        case 2:
            return f"({inner} is {rng.choice(TESTS)})"
        case 3 | 4:
            return f"({inner}|{rng.choice(FILTERS)})"
        case 5:
            return f"({inner}).{rng.choice(METHODS)}"
        case 6:
            return rng.choice(FORMATS)
        case 7:
            return f"[{inner}, {inner}]"
        case _:
            return f"({inner} if {expression(rng, depth - 1)} else {expression(rng, depth - 1)})"


def statement(rng: random.Random, depth: int = 2) -> str:
    """One or several statements."""
    value = expression(rng)
    inner = statement(rng, depth - 1) if depth else "{{ x }}"
    name = rng.choice(("x", "y", "z"))
    match rng.randrange(14):
        case 0 | 1 | 2:
            return f"{{{{ {value} }}}}"
        case 3:
            return f"{{% set {name} = {value} %}}{inner}"
        case 4:
            return f"{{% for {name} in {value} %}}{inner}{{% endfor %}}"
        case 5:
            return f"{{% for i in range({rng.choice((2, 9, 99, 10**6, 10**12))}) %}}{inner}{{% endfor %}}"
        case 6:
            return f"{{% if {value} %}}{inner}{{% elif x %}}{{% else %}}{inner}{{% endif %}}"
        case 7:
            return f"{{% macro {name}(a=1) %}}{inner}{{{{ {name}(a) }}}}{{% endmacro %}}{{{{ {name}() }}}}"
        case 8:
            return f"{{% set {name} %}}{inner}{{% endset %}}{{{{ {name} }}}}"
        case 9:
            twice = rng.choice(("x + x", "x ~ x", "[x, x]", "{'a': x, 'b': x}", "x * 2", "(x, x)", "x * x", "x ** x"))
            start = rng.choice(("'a'", "[]", "3", "'😀' * 9999", "x"))
            times = rng.choice((9, 30, 64, 200))
            use = rng.choice(("x", "x|length", "x == x", "x|tojson", "x|list|length", "x in [x]", "x|string|length"))
            sets = f"{{% set x = {twice} %}}" * times
            return f"{{% set x = {start} %}}{sets}{{{{ {use} }}}}"
        case 10:
            return f"{{% set n = namespace(a={value}) %}}{{% for i in range(64) %}}{{% set n.a = n.a ~ n.a %}}" \
                   f"{{% endfor %}}"
        case 11:
            return rng.choice((
                "{% include 'config.json' %}", "{% import '/etc/hostname' as x %}", "{% extends '../outside.txt' %}",
                "{% raw %}", "{% generation %}a{% endgeneration %}", "{% call x() %}{{ x }}{% endcall %}", "{{ '{{' }}",
                "{% break %}", "{% filter upper %}a{% endfilter %}", "{% block a %}{{ self.a() }}{% endblock %}", "{#",
                "{% for a in [[1]] recursive %}{{ loop(a) }}{% endfor %}", "{% with x = 1 %}{% endwith %}",
                "{% autoescape true %}{{ '<' }}{% endautoescape %}", "{{ raise_exception('no') }}", "{% do x %}",
                "{{ strftime_now('%Y' * 9999) }}", "{{ raise_exception('a' * 9999) }}", "{% else %}", "{{ x",
            ))
        case 12:
            return "{{ " + "(" * 300 + "1" + ")" * 300 + " }}" if rng.random() < 0.5 else "{{ " + "-" * 5000 + "1 }}"
        case _:
            return rng.choice(("{{ x }}" * 300, "{% if x %}" * 60 + "{% endif %}" * 60, "a" * 9999, "{{ " + "x." * 900
                               + "x }}", "{{ [" + "[" * 90 + "]" * 90 + "] }}", "{{ 1" + " + 1" * 3000 + " }}"))


def mutate_template(rng: random.Random, text: str) -> str:
    """Insert a statement between two others, replace an expression, cut a piece, or start afresh."""
    marks = [i for i in range(len(text)) if text.startswith(("{{", "{%"), i)] or [0]
    at = rng.choice(marks)
    known = "{% set x = " + rng.choice(ATOMS) + " %}{% set y = 'a' %}" if rng.random() < 0.6 else ""
    match rng.randrange(10):
        case 0 | 1 | 2 | 3 | 4:
            return text[:at] + known + statement(rng) + text[at:]
        case 5 | 6:
            end = text.find("}}", at)
            return text[:at] + "{{ " + expression(rng, 4) + " }}" + text[end + 2 :] if end > 0 else text + "{{"
        case 7:
            return text[:at] + text[rng.choice(marks) :]
        case _:
            return known + statement(rng, 3) + statement(rng, 1)
