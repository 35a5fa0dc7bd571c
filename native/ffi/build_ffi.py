"""Write the C source of a cffi extension module.

usage: build_ffi.py MODULE HEADER OUTPUT DECLARATIONS...
"""

import sys
from pathlib import Path

from cffi import FFI


def main() -> None:
    module, header, output, *declarations = sys.argv[1:]
    ffi = FFI()
    for path in declarations:
        ffi.cdef(Path(path).read_text(encoding="utf-8"))
    ffi.set_source(module, f'#include "{header}"')
    ffi.emit_c_code(output)


if __name__ == "__main__":
    main()
