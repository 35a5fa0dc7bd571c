"""Values drawn at random for the fields of a message: usual ones, edges of their types, others."""

from __future__ import annotations

import random
import re
import string
from typing import Any

from msgspec import inspect

from tests.hostile.requests import FRACTIONS, NUMBERS, OTHERS, TEXTS, values

_LETTERS = string.printable + "\0\x7f\x85\u202e\u2028\ud7ff\ufffd\U0001f512\U0010ff80"


class Draw:
    """`paths` and `names` are of what there is: a seal's id, a job's, an alarm's."""

    def __init__(self, seed: str, paths: list[str]) -> None:
        self.random = random.Random(seed)
        self.paths = paths
        self.names: list[str] = []

    def know(self, name: str) -> None:
        """An id that the service told."""
        self.names.append(name)
        del self.names[:-32]

    def text(self) -> str:
        draw = self.random
        match draw.randrange(6):
            case 0:
                return draw.choice(TEXTS)
            case 1:
                return draw.choice(self.paths)
            case 2 if self.names:
                return draw.choice(self.names)
            case 3:
                return "".join(draw.choices("0123456789abcdef", k=draw.choice((8, 16, 24, 32))))
            case 4:
                return draw.choice(self.paths) + draw.choice(TEXTS)
        return "".join(draw.choices(_LETTERS, k=draw.randrange(draw.choice((4, 64, 300)))))

    def number(self) -> int:
        draw = self.random
        if draw.random() < 0.4:
            return draw.choice(NUMBERS)
        return draw.getrandbits(draw.randrange(1, 70)) * draw.choice((1, 1, 1, -1))

    def usual(self, kind: inspect.Type, name: str) -> Any:
        """What passes for a value of this type, and often names something that is there."""
        draw = self.random
        match kind:
            case inspect.StrType() if name == "trace":
                return ""
            case inspect.StrType():
                if kind.pattern:
                    fit = [known for known in self.names if re.search(kind.pattern, known)]
                    return draw.choice(fit or ["0" * (16 if "{16}" in kind.pattern else 24)])
                if "seal" in name and self.names:
                    return draw.choice(self.names)
                return draw.choice(self.paths)
            case inspect.IntType():
                number = max(kind.ge or 0, draw.choice((0, 1, 4096, 65536, draw.getrandbits(16))))
                return min(number, number if kind.le is None else kind.le)
            case inspect.FloatType():
                return draw.choice((0.0, 0.05, 1.0, 10.0))
            case inspect.BoolType():
                return draw.random() < 0.5
            case inspect.NoneType():
                return None
            case inspect.EnumType():
                return draw.choice(list(kind.cls)).value
            case inspect.LiteralType():
                return draw.choice(kind.values)
            case inspect.ListType():
                return [self.usual(kind.item_type, name) for _ in range(draw.randrange(3))]
            case inspect.DictType():
                return {self.text(): self.usual(kind.value_type, name)}
            case inspect.UnionType():
                return self.usual(draw.choice(kind.types), name)
            case inspect.StructType():
                return {
                    field.encode_name: self.usual(field.type, field.encode_name)
                    for field in kind.fields
                    if field.required or draw.random() < 0.3
                }
        return {}

    def any(self, kind: inspect.Type, name: str) -> Any:
        """A value for a field of this type that may be what it must not."""
        draw = self.random
        match kind:
            case inspect.UnionType():
                return self.any(draw.choice(kind.types), name)
            case inspect.StructType() if kind.fields and draw.random() < 0.8:
                value = self.usual(kind, name)
                field = draw.choice(kind.fields)
                return value | {field.encode_name: self.any(field.type, field.encode_name)}
            case inspect.ListType() if draw.random() < 0.6:
                return [self.any(kind.item_type, name) for _ in range(draw.randrange(4))]
        match draw.randrange(10):
            case 0 | 8 | 9:
                return self.usual(kind, name)
            case 1 | 2 | 3 if isinstance(kind, inspect.StrType):
                return self.text()
            case 1 | 2 | 3 if isinstance(kind, inspect.IntType | inspect.FloatType):
                return self.number() if draw.random() < 0.8 else draw.choice(FRACTIONS)
            case 4 if not isinstance(kind, inspect.StructType):
                return draw.choice(values(kind))
            case 5:
                return self.text()
            case 6:
                return self.number()
        return draw.choice(OTHERS)
