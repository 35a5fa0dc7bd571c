"""Write the C source of the _sealsvc_native extension module.

usage: build_ffi.py OUTPUT DECLARATIONS...
"""

import sys
from pathlib import Path

from cffi import FFI

MODULE = "_sealsvc_native"


def main() -> None:
    output, *declarations = map(Path, sys.argv[1:])
    ffi = FFI()
    for path in declarations:
        ffi.cdef(path.read_text(encoding="utf-8"))
    ffi.set_source(MODULE, '#include "sealsvc/native.h"')
    ffi.emit_c_code(str(output))


if __name__ == "__main__":
    main()
