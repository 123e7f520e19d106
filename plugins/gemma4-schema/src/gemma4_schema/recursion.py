"""How deep a schema that refers to itself may go: an answer must come to an end, whatever is chosen on the way."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from math import inf, log

from gemma4_schema.nodes import Array, Choice, Constants, Never, Node, Object, Reference, children

DEEPEST = 10
"""Times that definitions which refer to themselves may stand inside each other."""
SHALLOWEST = 3
MOST_NODES = 32
"""About how many parts such definitions may grow to, where lists of bounded length hold them: then fewer levels are
allowed."""


class Recursion:
    """Levels of the definitions of one schema."""

    def __init__(self, definitions: Mapping[str, Node]) -> None:
        self._definitions = definitions

    @cached_property
    def _direct(self) -> dict[str, list[str]]:
        return {name: sorted(_references(node)) for name, node in self._definitions.items()}

    @cached_property
    def _returns(self) -> frozenset[str]:
        """The definitions that a walk comes back to while it is inside them: each circle of references has one, and
        only these count as levels."""
        found: set[str] = set()
        done: set[str] = set()
        for root in self._direct:
            path: dict[str, int] = {}
            stack = [root] if root not in done else []
            while stack:
                name = stack[-1]
                position = path.setdefault(name, 0)
                if position == len(self._direct[name]):
                    path.pop(name)
                    done.add(stack.pop())
                    continue
                path[name] += 1
                other = self._direct[name][position]
                if other in path:
                    found.add(other)
                elif other not in done:
                    stack.append(other)
        return frozenset(found)

    @cached_property
    def _deep(self) -> frozenset[str]:
        """Definitions that refer to those, by way of others too."""
        found = set(self._returns)
        changed = True
        while changed:
            more = {name for name, others in self._direct.items() if name not in found and found.intersection(others)}
            changed = bool(more)
            found |= more
        return frozenset(found)

    def recursive(self, name: str) -> bool:
        """Whether entering a definition is one more level."""
        return name in self._returns

    def deepens(self, node: Node) -> bool:
        """Whether a definition that refers to itself can stand inside a node."""
        return not self._deep.isdisjoint(_references(node))

    @cached_property
    def heights(self) -> dict[str, float]:
        """The fewest levels of each definition; infinite where it has no end."""
        found = dict.fromkeys(self._definitions, inf)
        changed = True
        while changed:
            changed = False
            for name, node in self._definitions.items():
                height = self._height(node, found)
                changed, found[name] = changed or height < found[name], min(height, found[name])
        return found

    def height(self, node: Node) -> float:
        """The fewest levels that a value of this node needs; infinite where there is none."""
        return self._height(node, self.heights)

    def _height(self, node: Node, known: Mapping[str, float]) -> float:
        match node:
            case Never():
                return inf
            case Constants(values):
                return 0 if values else inf
            case Reference(name):
                return known[name] + self.recursive(name)
            case Choice(options):
                return min((self._height(option, known) for option in options), default=inf)
            case Array():
                inside = [*node.prefix[: node.low], *([node.items] if node.low > len(node.prefix) else [])]
                return max((self._height(item, known) for item in inside), default=0)
            case Object():
                wanted = [self._height(node.properties[name], known) for name in node.required]
                missing = node.low - sum(self._height(value, known) < inf for value in node.properties.values())
                others = [self._height(value, known) for value in (*(value for _, value in node.patterns), node.extra)]
                return max([*wanted, *([min(others)] if missing > 0 else [])], default=0)
        return 0

    @cached_property
    def levels(self) -> int:
        """Levels that answers may have."""
        widest = max((self._width(name) for name in self._definitions if self.recursive(name)), default=1.0)
        deepest = DEEPEST if widest <= 1 else max(int(log(MOST_NODES) / log(widest) + 1e-9), SHALLOWEST)
        needed = [self.heights[name] for name in self._definitions if self.heights[name] < inf]
        return max(min(deepest, DEEPEST), int(max(needed, default=0)) + 1)

    def _width(self, name: str) -> float:
        """How often definitions that count as levels can stand side by side in one of them."""
        return self._count(self._definitions[name], {})

    def _count(self, node: Node, known: dict[str, float]) -> float:
        if isinstance(node, Reference):
            if self.recursive(node.name):
                return 1.0
            if node.name not in known:
                known[node.name] = self._count(self._definitions[node.name], known) if node.name in self._deep else 0.0
            return known[node.name]
        counts = [times * self._count(child, known) for child, times in children(node)]
        return max(counts, default=0.0) if isinstance(node, Choice) else sum(counts)


def _references(node: Node) -> set[str]:
    if isinstance(node, Reference):
        return {node.name}
    return set().union(*(_references(child) for child, _ in children(node)))
