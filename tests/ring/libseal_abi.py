"""What a program that is linked with libseal depends on: symbols and their versions, sizes of
structures, where their fields are, and values of enums and constants, as the compiler has them.

`python -m tests.ring.libseal_abi` writes the committed table (libseal.abi) anew. A line that
changes or goes breaks programs that are there: then the library needs another soname. New lines are
fine at the end of a structure that begins with its own size, in an enum, and for functions."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

LIBSEAL = Path(__file__).parents[2] / "native" / "libseal"
HEADERS = ["seal.h", "seal_channel.h", "seal_pi.h", "seal_ring.h", "seal_states.h", "seal_table.h"]
TABLE = LIBSEAL / "libseal.abi"

COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
STRUCT = re.compile(r"^struct (\w+) \{(.*?)^\};", re.DOTALL | re.MULTILINE)
ENUM = re.compile(r"^enum(?: \w+)? \{(.*?)\};", re.DOTALL | re.MULTILINE)
CONSTANT = re.compile(r"^#define (SEAL_\w+) +[^\s(]", re.MULTILINE)
FIELD = re.compile(r"(?:\(\*(\w+)\)\(.*|(\w+)(?:\[\w+\])?)$", re.DOTALL)


def fields(body: str) -> list[str]:
    """Names of fields; those of one type may stand in one declaration, and unions have no name."""
    found = []
    body = re.sub(r"\bunion \{|^\t\};", "", body, flags=re.MULTILINE)
    for declaration in filter(None, (part.strip() for part in body.split(";"))):
        for name in [declaration] if "(*" in declaration else declaration.split(","):
            matched = FIELD.search(name.strip())
            assert matched, f"not understood: {name}"
            found.append(matched[1] or matched[2])
    return found


def program() -> str:
    """C that prints the table's lines but for symbols."""
    texts = [COMMENT.sub("", (LIBSEAL / name).read_text()) for name in HEADERS]
    lines = [f'#include "{name}"' for name in HEADERS]
    lines += ["#include <stddef.h>", "#include <stdio.h>", "int main(void) {"]
    for text in texts:
        for name, body in STRUCT.findall(text):
            lines.append(f'printf("struct {name} size %zu\\n", sizeof(struct {name}));')
            for field in fields(body):
                lines.append(
                    f'printf("struct {name} {field} at %zu size %zu\\n",'
                    f" offsetof(struct {name}, {field}), sizeof(((struct {name} *)0)->{field}));"
                )
        names = [re.split(r"[\s=]", item.strip())[0] for body in ENUM.findall(text)
                 for item in body.split(",") if item.strip()]  # fmt: skip
        for name in names + CONSTANT.findall(text):
            lines.append(f'printf("constant {name} %#llx\\n", (unsigned long long)({name}));')
    return "\n".join([*lines, "return 0;", "}", ""])


def layout() -> set[str]:
    with tempfile.TemporaryDirectory() as made:
        source, binary = Path(made, "layout.c"), Path(made, "layout")
        source.write_text(program())
        subprocess.run(["gcc", "-w", f"-I{LIBSEAL}", "-o", binary, source], check=True, timeout=300)
        done = subprocess.run([binary], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.splitlines())


def mapped_symbols() -> set[str]:
    """As the linker is told."""
    versions = re.findall(
        r"^(\w+) \{\s*global:(.*?)(?:local:.*?)?\}", (LIBSEAL / "libseal.map").read_text(),
        re.DOTALL | re.MULTILINE,
    )  # fmt: skip
    return {f"symbol {name}@{version}" for version, body in versions
            for name in re.findall(r"\w+(?=;)", body)}  # fmt: skip


if __name__ == "__main__":
    TABLE.write_text("".join(f"{line}\n" for line in sorted(layout() | mapped_symbols())))
