// What g++ -fsanitize=alignment,bounds,shift-exponent,integer-divide-by-zero calls: the compiler's
// own library would print more, but not which CUDA thread it was.
#pragma once

#include "threads.h"

namespace emu {
struct SourceLocation {
  const char* file;
  unsigned line, column;
};
}  // namespace emu

#define EMU_HANDLER(NAME, PARAMETERS, TEXT)                                                    \
  extern "C" [[noreturn]] __attribute__((visibility("hidden"), used)) void NAME PARAMETERS {   \
    emu::fail("%s in line %u of the source", TEXT, at->line);                                  \
  }
EMU_HANDLER(__ubsan_handle_type_mismatch_v1_abort, (emu::SourceLocation * at, void*),
            "access through a null or misaligned pointer")
EMU_HANDLER(__ubsan_handle_out_of_bounds_abort, (emu::SourceLocation * at, void*),
            "index outside of a local or static shared array")
EMU_HANDLER(__ubsan_handle_shift_out_of_bounds_abort, (emu::SourceLocation * at, void*, void*),
            "shift by a negative number of bits or by the width")
EMU_HANDLER(__ubsan_handle_divrem_overflow_abort, (emu::SourceLocation * at, void*, void*),
            "division by zero or overflow of a division")
#undef EMU_HANDLER
